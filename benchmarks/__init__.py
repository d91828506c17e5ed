"""foretell beside other servers: same models, same load generator, one interleaved run."""
