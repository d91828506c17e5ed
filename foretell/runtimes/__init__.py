"""From a package to a predictor. Importing this loads no model library: `load` brings in the one it needs."""

from foretell.runtimes.loading import load

__all__ = ["load"]
