"""A decoder's spec and weights out of the graph that `graph.build` drew: what another executor than ONNX Runtime needs.

Integers are widened to the floats that they stand for, so that every executor runs the same weights.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from foretell.core.errors import PackageError, did_you_mean
from foretell.llm.spec import SPEC, DecoderSpec, decode_spec

_KINDS = ("weight", "numbers", "columns", "rows")
"""How a weight's constants are named: as it is, in four bits, in eight bits by inputs, in eight bits by outputs."""


def read_graph(model: Path) -> tuple[DecoderSpec, "GraphWeights"]:
    """The spec and the weights of a graph. Raises `PackageError` for one that foretell did not draw, or not so.

    Norms hold their offset already, so the spec has none.
    """
    try:
        graph = onnx.load(model, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, which onnx does not name
        raise PackageError(f"{model.name}: not a readable ONNX file, or cut short ({error})") from None
    notes = {note.key: note.value for note in graph.metadata_props}
    if SPEC not in notes:
        raise PackageError(
            f"{model.name} does not say what decoder it is: only graphs that foretell drew can leave ONNX Runtime. Add"
            ' the model again from its original files, or run it with executor = "onnx"'
        )
    try:
        spec = decode_spec(notes[SPEC])
    except msgspec.MsgspecError as error:
        raise PackageError(f"{model.name}: its metadata describe no decoder ({error}); add the model again") from None
    spec = msgspec.structs.replace(spec, norm=msgspec.structs.replace(spec.norm, offset=0.0))
    return spec, GraphWeights(spec, {tensor.name: tensor for tensor in graph.graph.initializer}, model.parent)


class GraphWeights:
    """The `Weights` of a graph. What was packed is given packed ("…qkv_proj.weight", "…gate_up_proj.weight")."""

    def __init__(self, spec: DecoderSpec, tensors: dict[str, Any], folder: Path) -> None:
        self._spec = spec
        self._tensors = tensors
        self._folder = folder
        self._names = {f"{name.rpartition('.')[0]}.weight" for name in tensors if name.rpartition(".")[2] in _KINDS}
        self._names |= {name for name in tensors if name.endswith(".bias")}

    def names(self) -> Collection[str]:
        return self._names

    def get(self, name: str) -> NDArray[np.float32]:
        if name not in self._names:
            raise PackageError(f'no weight "{name}" in the graph. {did_you_mean(name, self._names)}')
        layer = name.removesuffix(".weight")
        if f"{layer}.numbers" in self._tensors:
            return self._from_four_bits(layer)
        for kind in ("columns", "rows"):
            if f"{layer}.{kind}" in self._tensors:
                numbers = self._array(f"{layer}.{kind}")
                scales: NDArray[np.float32] = self._array(f"{layer}.scales")
                return (numbers.T if kind == "columns" else numbers) * scales[:, None]
        return self._array(name).astype(np.float32)

    def _from_four_bits(self, layer: str) -> NDArray[np.float32]:
        """[n, k] of blocks; behind those of the weights stand those of the minima that a whole zero point leaves."""
        numbers, scales = self._array(f"{layer}.numbers"), self._array(f"{layer}.scales")
        n, blocks, half = numbers.shape
        levels = np.empty((n, blocks, 2 * half), np.float32)
        levels[..., 0::2], levels[..., 1::2] = numbers & 15, numbers >> 4
        both = self._array(f"{layer}.zeros")
        zeros = np.stack((both & 15, both >> 4), axis=-1).reshape(n, -1)[:, :blocks]
        levels -= zeros[..., None]
        levels *= scales[..., None]
        k = self._inputs(layer)
        count = -(-k // (2 * half))
        weights = levels[:, :count]
        if blocks > count:
            weights += levels[:, count:].reshape(n, -1)[:, :count, None]
        return weights.reshape(n, -1)[:, :k]

    def _inputs(self, layer: str) -> int:
        kind = layer.rpartition(".")[2]
        attention = self._spec.attention
        return {"o_proj": attention.heads * attention.head_dim, "down_proj": self._spec.ffn}.get(
            kind, self._spec.hidden
        )

    def _array(self, name: str) -> NDArray[Any]:
        tensor = self._tensors[name]
        if not tensor.external_data:
            inline: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
            return inline
        place = {entry.key: entry.value for entry in tensor.external_data}
        dtype, shape = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
        path = self._folder / Path(place["location"]).name
        try:
            return np.memmap(path, dtype, "r", int(place["offset"]), shape)
        except (OSError, ValueError) as error:
            raise PackageError(f'{path.name}: cut short at "{name}", or not readable ({error})') from None
