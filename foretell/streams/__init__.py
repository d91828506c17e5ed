"""The entrance for streams: sources, sinks, the processor between them, and state in event time."""
