"""The command line: one file per verb, each a thin translation of flags into calls of the rooms below."""
