"""Turn what people train into packages: one file per source format."""
