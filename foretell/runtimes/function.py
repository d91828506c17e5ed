"""Python-function packages: a file that defines `predict`. Code of the package, so it needs --trust-code."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from foretell.core.errors import ModelFailed, PackageError
from foretell.core.settings import ReplicaSettings
from foretell.core.tensor import DTYPES, Signature, Tensor, Tensors, TensorSpec
from foretell.core.text import encode_text
from foretell.runtimes.options import artifact_signature, read_options
from foretell.runtimes.trust import load_code
from foretell.store.package import Package


class FunctionOptions(msgspec.Struct, frozen=True):
    """[options] of a function package. signature: what `predict` takes and makes, where transforms surround it."""

    signature: Signature | None = None


class FunctionPredictor:
    """Calls `predict` once a batch.

    A function whose parameters are named like the inputs gets them as such; any other gets one dict of arrays.
    It returns a dict of arrays, or the array itself when there is one output, or a tuple in the signature's order.
    """

    def __init__(self, function: Callable[..., Any], signature: Signature, close: Callable[[], None]) -> None:
        self._function = function
        self._signature = signature
        self._close = close
        self._by_name = _takes_names(function, [s.name for s in signature.inputs])

    @property
    def signature(self) -> Signature:
        return self._signature

    def predict(self, inputs: Tensors) -> Tensors:
        result = self._function(**inputs) if self._by_name else self._function(inputs)
        return {
            spec.name: _as_array(value, spec)
            for spec, value in zip(self._signature.outputs, self._values(result), strict=True)
        }

    def close(self) -> None:
        self._close()

    def _values(self, result: Any) -> list[Any]:
        specs = self._signature.outputs
        if isinstance(result, Mapping):
            if missing := [s.name for s in specs if s.name not in result]:
                raise ModelFailed(f"predict returned {sorted(result)}, but not {', '.join(missing)}")
            return [result[s.name] for s in specs]
        if isinstance(result, tuple) and len(result) == len(specs):
            return list(result)
        if len(specs) == 1 and not isinstance(result, tuple):
            return [result]
        raise ModelFailed(
            f"predict returned {type(result).__name__}; return a dict of arrays with the keys"
            f" {', '.join(s.name for s in specs)}, or a tuple of them in that order"
        )


def _takes_names(function: Callable[..., Any], names: list[str]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} == set(names)


def _as_array(value: Any, spec: TensorSpec) -> Tensor:
    """What a person returns (lists, floats, strings) as the declared datatype, if no value changes by it."""
    array = np.asarray(value)
    wanted = DTYPES[spec.datatype]
    if array.dtype == wanted and spec.datatype != "BYTES":
        return array
    if spec.datatype == "BYTES":
        return encode_text(array)
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise ModelFailed(f'predict returned dtype {array.dtype} for output "{spec.name}", not {spec.datatype}')
    return array.astype(wanted)


def open_predictor(package: Package, settings: ReplicaSettings, trust_code: bool) -> FunctionPredictor:
    """Load the file and find `predict` (and `close`, if defined). Raises `UntrustedCode`, `PackageError`."""
    options = read_options(package.manifest, FunctionOptions)
    module = load_code(package, package.manifest.artifact, trust_code)
    function = getattr(module, "predict", None)
    if not callable(function):
        raise PackageError(f"{package.manifest.artifact} defines no function `predict`")
    close = getattr(module, "close", None)
    signature = artifact_signature(package.manifest, options.signature)
    return FunctionPredictor(function, signature, close if callable(close) else lambda: None)
