"""Arrow tables as tensors and back, column by column. Knows no file format, no job and no model."""
