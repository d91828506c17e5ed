"""foretell runs trained models in production: one package, served online, in batch and on streams.

`foretell.load` opens a model in this process; it is imported when first asked for, so that replicas and `--help`
don't pay for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foretell.app.model import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("load", "Model"):
        return getattr(importlib.import_module("foretell.app.model"), name)
    raise AttributeError(f"module 'foretell' has no attribute {name!r}")
