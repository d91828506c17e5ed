"""Linear layers and embeddings at a chosen precision, as nodes of a drawing. Knows no layers of a decoder.

fp32: weights as they are. fp16: stored in half the bytes, widened when a session opens: on a CPU it runs at the
speed and in the memory of fp32. int4: blocks along the inputs, each with a scale and a minimum, multiplied by ONNX
Runtime's MatMulNBits with activations rounded to int8. int8: one scale an output, times activations rounded to int8
with one scale a row, as one integer product. int8 is twice as fast as int4 from eight rows on; int4 is smaller, and
faster alone.
"""

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from foretell.llm.drawing import Drawing
from foretell.llm.quantize import beside, columns, four_bits, packed

Precision = Literal["int4", "int8", "fp16", "fp32"]

Floats = NDArray[np.float32]

_FLOAT = 1
"""float32, as Cast names it."""

_NEGLIGIBLE = 1e-3
"""Of a block's scale: what minima may lie off a whole zero point before they are worth two more nodes."""


class Form(msgspec.Struct, frozen=True):
    """How weights are stored. `block_size`: numbers that share a scale, for int4."""

    precision: Precision
    block_size: int = 32


def linear(draw: Drawing, name: str, value: str, weight: Floats, form: Form, bias: Floats | None) -> str:
    """value [m, in] times weight [out, in] transposed, plus bias [out]."""
    added = [] if bias is None else [draw.constant(f"{name}.bias", bias)]
    if form.precision == "int4":
        return _int4(draw, name, value, weight, form.block_size, added)
    if form.precision == "int8":
        product = _int8(draw, name, value, weight)
        return draw.node("Add", [product, *added]) if added else product
    return draw.node("Gemm", [value, _floats(draw, name, weight, form), *added], transB=1)


def embedding(draw: Drawing, name: str, tokens: str, weight: Floats, form: Form) -> str:
    """Rows [m, hidden] of weight [vocab, hidden] by token ids [m]; in int8 where linear layers are int4."""
    if form.precision in ("int4", "int8"):
        table, scales = _rows(draw, name, weight)
        rows = draw.node("Cast", [draw.node("Gather", [table, tokens])], to=_FLOAT)
        return draw.node(
            "Mul", [rows, draw.node("Unsqueeze", [draw.node("Gather", [scales, tokens]), draw.integers(1)])]
        )
    table = draw.constant(f"{name}.weight", _stored(weight, form))
    rows = draw.node("Gather", [table, tokens])
    return draw.node("Cast", [rows], to=_FLOAT) if form.precision == "fp16" else rows


def _int4(draw: Drawing, name: str, value: str, weight: Floats, size: int, added: list[str]) -> str:
    """MatMulNBits, whose zero points are whole; what those leave of the minima multiplies each block's sum of inputs.

    Sums and leftovers are further inputs and weights of the same product, which costs less than one of their own.
    """
    n, k = weight.shape
    blocks = four_bits(weight, size)
    if np.any(np.abs(blocks.rests) > _NEGLIGIBLE * blocks.scales):
        count = blocks.rests.shape[1]
        if k % size:
            value = draw.node("Pad", [value, draw.integers(0, 0, 0, -k % size)])
        grouped = draw.node("Reshape", [value, draw.integers(-1, count, size)])
        sums = draw.node("ReduceSum", [grouped, draw.integers(-1)], keepdims=0)
        value = draw.node("Concat", [value, sums], axis=-1)
        k = count * size + count
        blocks = beside(blocks, four_bits(blocks.rests, size))
    names = [
        draw.constant(f"{name}.{kind}", array)
        for kind, array in (("numbers", blocks.numbers), ("scales", blocks.scales), ("zeros", packed(blocks.zeros)))
    ]
    return draw.node(
        "com.microsoft:MatMulNBits",
        [value, *names, *(["", *added] if added else [])],
        K=k,
        N=n,
        bits=4,
        block_size=size,
        accuracy_level=4,
    )


def _int8(draw: Drawing, name: str, value: str, weight: Floats) -> str:
    """Each row is divided by its largest number, so that one fixed scale serves all rows of whatever batch.

    A row of zeros divides zero by zero, but the product is then multiplied with zero.
    """
    if draw.has(f"{name}.rows"):  # the embedding's table, turned when a session opens
        turned, scales = _rows(draw, name, weight)
        numbers = draw.node("Transpose", [turned], perm=[1, 0])
    else:
        parts = columns(weight)
        numbers = draw.constant(f"{name}.columns", np.ascontiguousarray(parts.numbers.T))
        scales = draw.constant(f"{name}.scales", parts.scales)
    largest = draw.node("ReduceMax", [draw.node("Abs", [value]), draw.integers(-1)], keepdims=1)
    step = draw.constant("activation.step", np.array(1 / 127, np.float32))
    zero = draw.constant("activation.zero", np.array(128, np.uint8))
    rounded = draw.node("QuantizeLinear", [draw.node("Div", [value, largest]), step, zero])
    product = draw.node("com.microsoft:MatMulIntegerToFloat", [rounded, numbers, step, scales, zero])
    return draw.node("Mul", [product, largest])


def _rows(draw: Drawing, name: str, weight: Floats) -> tuple[str, str]:
    names = f"{name}.rows", f"{name}.scales"
    if not draw.has(names[0]):
        parts = columns(weight)
        draw.constant(names[0], parts.numbers)
        draw.constant(names[1], parts.scales)
    return names


def _floats(draw: Drawing, name: str, weight: Floats, form: Form) -> str:
    stored = draw.constant(f"{name}.weight", _stored(weight, form))
    return draw.node("Cast", [stored], to=_FLOAT) if form.precision == "fp16" else stored


def _stored(weight: Floats, form: Form) -> NDArray[np.floating]:
    return weight.astype(np.float16 if form.precision == "fp16" else np.float32, copy=False)
