"""Packages, versions, aliases: what a model is at rest. Knows neither how to run one nor how to serve one."""
