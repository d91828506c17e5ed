"""Linear layers and embeddings at a chosen precision, as nodes of a drawing. Knows no layers of a decoder.

fp32: the weights as they are. fp16: stored in half the bytes and widened when a session is opened, so it runs at
the speed and in the memory of fp32 on a CPU. int8 and int4: blocks along the inputs, each with a scale (int4 also
with a zero point), multiplied by ONNX Runtime's MatMulNBits with activations rounded to int8 (accuracy level 4).
"""

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from foretell.accel.quantize import quantize_blocks
from foretell.llm.drawing import Drawing

Precision = Literal["int4", "int8", "fp16", "fp32"]

_BITS = {"int4": 4, "int8": 8}


class Form(msgspec.Struct, frozen=True):
    """How weights are stored. `block_size`: numbers that share a scale, for int4 and int8."""

    precision: Precision
    block_size: int = 32

    @property
    def bits(self) -> int:
        """Of a quantized number; 0 for floats."""
        return _BITS.get(self.precision, 0)


def linear(
    draw: Drawing, name: str, value: str, weight: NDArray[np.float32], form: Form, bias: NDArray[np.float32] | None
) -> str:
    """value [..., in] times weight [out, in] transposed, plus bias [out]."""
    added = [] if bias is None else [draw.constant(f"{name}.bias", bias)]
    if form.bits:
        numbers = _quantized(draw, name, weight, form)
        return draw.node(
            "com.microsoft:MatMulNBits",
            [value, *numbers, *([""] * (4 - len(numbers)) if added else []), *added],
            K=weight.shape[1],
            N=weight.shape[0],
            bits=form.bits,
            block_size=form.block_size,
            accuracy_level=4,
        )
    product = draw.node("com.microsoft:FusedMatMul", [value, _floats(draw, name, weight, form)], transB=1)
    return draw.node("Add", [product, *added]) if added else product


def embedding(draw: Drawing, name: str, tokens: str, weight: NDArray[np.float32], form: Form) -> str:
    """Rows of weight [vocab, hidden] by token id. int4 keeps embeddings in int8: they cost no time and much quality."""
    if not form.bits:
        table = draw.constant(f"{name}.weight", weight.astype(_storage(form)))
        rows = draw.node("Gather", [table, tokens])
        return draw.node("Cast", [rows], to=1) if form.precision == "fp16" else rows
    form = Form("int8", form.block_size)
    numbers, scales = _quantized(draw, name, weight, form)
    table = draw.node("Reshape", [numbers, draw.integers(weight.shape[0], -1)])
    return draw.node(
        "com.microsoft:GatherBlockQuantized",
        [table, tokens, scales],
        bits=8,
        block_size=form.block_size,
        gather_axis=0,
        quantize_axis=1,
    )


def _storage(form: Form) -> type[np.floating]:
    return np.float16 if form.precision == "fp16" else np.float32


def _floats(draw: Drawing, name: str, weight: NDArray[np.float32], form: Form) -> str:
    stored = draw.constant(f"{name}.weight", weight.astype(_storage(form), copy=False))
    return draw.node("Cast", [stored], to=1) if form.precision == "fp16" else stored


def _quantized(draw: Drawing, name: str, weight: NDArray[np.float32], form: Form) -> list[str]:
    prefix = f"{name}.{form.precision}"
    names = [f"{prefix}.numbers", f"{prefix}.scales"]
    if form.bits == 4:
        names.append(f"{prefix}.zeros")
    if not draw.has(names[0]):
        blocks = quantize_blocks(weight, form.bits, form.block_size, symmetric=form.bits == 8)
        for each, array in zip(names, [part for part in blocks if part is not None], strict=True):
            draw.constant(each, array)
    return names
