"""Steps in the package's own Python file; only under --trust-code."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from foretell.core.errors import ForetellError, ModelFailed, PackageError
from foretell.core.tensor import Tensor, Tensors
from foretell.core.text import encode_text
from foretell.runtimes.step import Context
from foretell.runtimes.trust import load_code
from foretell.store.manifest import CustomStep


class Custom:
    """Calls `before(inputs)` or `after(outputs, inputs)`; both get and return dicts of arrays.

    `inputs` of `after` are all tensors that were there before the model ran: the client's and the model's own.
    """

    def __init__(self, function: Callable[..., Any], file: str, after: bool) -> None:
        self.reads: tuple[str, ...] = ()
        self.makes: tuple[str, ...] | None = None
        self._function = function
        self._where = f"{file}: {function.__name__}"
        self._after = after

    def __call__(self, tensors: Tensors, given: Tensors) -> Tensors:
        try:
            result = self._function(tensors, given) if self._after else self._function(tensors)
        except ForetellError:
            raise
        except Exception as error:
            raise ModelFailed(f"{self._where} raised {type(error).__name__}: {error}") from error
        if not isinstance(result, Mapping):
            raise ModelFailed(f"{self._where} returned {type(result).__name__}, expected a dict of arrays")
        return {str(name): _as_tensor(value) for name, value in result.items()}


def _as_tensor(value: Any) -> Tensor:
    array = np.asarray(value)
    return encode_text(array) if array.dtype.kind in "SUO" else array


def make_step(step: CustomStep, context: Context) -> Custom:
    """Load the file. Raises `UntrustedCode`, or `PackageError` if it defines no function for this place."""
    module = load_code(context.package, step.file, context.trust_code)
    name = "after" if context.after else "before"
    function = getattr(module, name, None)
    if not callable(function):
        raise PackageError(f"{step.file} defines no function `{name}`, which model.toml asks for")
    return Custom(function, step.file, context.after)
