"""Errors as they travel from a replica to the gateway: by the name of their class. Knows no frame."""

import traceback
from pathlib import Path

from foretell.core.errors import (
    ConfigError,
    ContextExceeded,
    DeadlineExceeded,
    ForetellError,
    InvalidInput,
    ModelFailed,
    NotReady,
    Overloaded,
    PackageError,
    Unsupported,
    UntrustedCode,
)

_ERRORS: dict[str, type[ForetellError]] = {
    kind.__name__: kind
    for kind in (
        ConfigError,
        ContextExceeded,
        DeadlineExceeded,
        InvalidInput,
        ModelFailed,
        NotReady,
        PackageError,
        Unsupported,
        UntrustedCode,
    )
}
"""What a replica may report, by the name it travels under; anything else is the model's failure."""


def describe(error: Exception) -> tuple[str, str]:
    """The name and the message of what was raised; an unexpected error is the model's, and its trace is printed."""
    if isinstance(error, ForetellError):
        return type(error).__name__, error.message
    traceback.print_exc()
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return ModelFailed.__name__, f"the model raised {type(error).__name__}: {error} ({place})"


def revive(name: str, message: str, retry_after_s: float = 0.0) -> ForetellError:
    """The error again, on the other side."""
    if name == Overloaded.__name__:
        return Overloaded(message, retry_after_s)
    return _ERRORS.get(name, ModelFailed)(message)
