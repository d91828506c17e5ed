"""What a transform returned → arrays with a row for each event: as a model wants them, or as they are."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from foretell.core.columns import to_tensor
from foretell.core.errors import InvalidInput, did_you_mean
from foretell.core.tensor import Signature, Tensor, Tensors, TensorSpec

Fit = Callable[[Mapping[str, Any], int], Tensors]
"""Columns of so many events → arrays. Raises `InvalidInput`."""


def as_made(made: Mapping[str, Any], count: int) -> Tensors:
    """Without a model to ask: any names and datatypes."""
    return {name: _array(name, value, count) for name, value in made.items()}


class ModelFit:
    """The inputs of a model, whole and in its datatypes; those of `without` come from elsewhere."""

    def __init__(self, signature: Signature, without: Collection[str] = ()) -> None:
        self._specs = {spec.name: spec for spec in signature.inputs if spec.name not in without}
        self._batchable = signature.batchable

    def __call__(self, made: Mapping[str, Any], count: int) -> Tensors:
        for name in made:
            if name not in self._specs:
                raise InvalidInput(f'returned "{name}". {did_you_mean(name, self._specs)}')
        for spec in self._specs.values():
            if spec.name not in made:
                raise InvalidInput(f'returned no "{spec.name}"; the model expects {spec}')
        return {name: self._column(made[name], spec, count) for name, spec in self._specs.items()}

    def _column(self, value: Any, spec: TensorSpec, count: int) -> Tensor:
        array = to_tensor(_array(spec.name, value, count, object if spec.datatype == "BYTES" else None), spec)
        wanted = spec.shape[1:]
        if not self._batchable:  # then an event is a whole request, for which a scalar may stand
            wanted, array = spec.shape, array.reshape(count, 1) if array.ndim == 1 else array
        shape = array.shape[1:]
        if len(shape) != len(wanted) or any(want not in (-1, got) for want, got in zip(wanted, shape, strict=True)):
            told = f"{list(shape)} for an event, the model expects {list(wanted)} (-1 is any)"
            raise InvalidInput(f'returned "{spec.name}" of shape {told}')
        return array


def _array(name: str, value: Any, count: int, dtype: type[object] | None = None) -> Tensor:
    try:
        array = np.asarray(value, dtype)
    except ValueError as error:
        raise InvalidInput(f'returned what is no array as "{name}": {error}') from None
    if not array.ndim or len(array) != count:
        raise InvalidInput(f'returned "{name}" of shape {list(array.shape)} for {count} events')
    return array
