"""foretell runs trained models in production: one package, served online, in batch and on streams."""
