"""Linear layers with what lies around them, as single kernels of few rows, in Triton.

A decoding step costs what it reads and how often it launches, hardly what it computes: so a layer takes the norm before
it along, or the sum behind it. Knows no spec; `torch_step` puts the layers together.
"""
# ruff: noqa: ANN001, N803 - kernels have pointers and constants of the compiler for arguments

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Stream(NamedTuple):
    """What the layers add to, and what the next norm needs of it: so no kernel reads it only to norm it.

    `value` [rows, width]; `scaled` is it times the next norm's weights, and `squares` float32 [rows, parts] the sums
    of its squares, by parts of a row.
    """

    value: Tensor
    scaled: Tensor
    squares: Tensor


class Layer(NamedTuple):
    """Weights [outputs, inputs] and biases [outputs] of a linear layer."""

    weight: Tensor
    bias: Tensor | None


def embed(tokens: Tensor, weight: Tensor, factor: float, scale: Tensor) -> Stream:
    """The rows `tokens` int64 [rows] of weight [vocab, width], times `factor`; `scale`: weights of the next norm."""
    stream = _followed(weight.new_empty((len(tokens), weight.shape[1])), 1)
    _embed[(len(tokens),)](tokens, weight, *stream, scale, factor, **_whole_rows(weight.shape[1]))
    return stream


def add(value: Tensor, layer: Layer, stream: Stream, scale: Tensor) -> Stream:
    """`stream`, in its place, + the layer of `value`; `scale`: weights of the next norm."""
    outputs, inputs = layer.weight.shape
    following = _followed(stream.value, triton.cdiv(outputs, _tile(outputs, inputs).outputs))
    linear(value, layer, stream.value, following=(following, scale))
    return following


def add_normed(update: Tensor, weight: Tensor, eps: float, stream: Stream, scale: Tensor) -> Stream:
    """`stream`, in its place, + norm(update); `scale`: weights of the next norm."""
    rows, width = update.shape
    following = _followed(stream.value, 1)
    _add_normed[(rows,)](update, weight, *following, scale, eps, **_whole_rows(width))
    return following


def linear(
    value: Tensor | Stream,
    layer: Layer,
    target: Tensor,
    eps: float = 0.0,
    activation: str = "",
    cap: float = 0.0,
    following: tuple[Stream, Tensor] | None = None,
) -> Tensor:
    """`target` [rows, outputs] = the layer of `value` [rows, inputs]; a stream is normed before, with `eps`.

    With an activation (silu, gelu_tanh) the layer's halves are a gate and what it lets through: activation(gate) * up.
    `cap` limits the result softly. With `following`, a stream whose value is the target, and the weights of the next
    norm, the result is added to what is there.
    """
    source, squares = (value.scaled, value.squares) if isinstance(value, Stream) else (value, None)
    (rows, inputs), outputs = source.shape, target.shape[1]
    cut = _tile(outputs, inputs)
    high = max(16, min(triton.next_power_of_2(rows), 64))
    deep = cut.inputs * 2 // source.element_size()
    stage = (high + cut.outputs * (2 if activation else 1)) * deep * source.element_size()
    parts = 0 if squares is None else squares.shape[1]
    stream, scale = following or (Stream(target, target, target), target)
    _linear[(triton.cdiv(outputs, cut.outputs), triton.cdiv(rows, high))](
        source,
        source if squares is None else squares,
        layer.weight,
        layer.weight if layer.bias is None else layer.bias,
        target,
        stream.scaled,
        stream.squares,
        scale,
        rows,
        outputs,
        eps,
        cap,
        INPUTS=inputs,
        PARTS=parts,
        BIAS=layer.bias is not None,
        ACTIVATION=activation,
        ADDS=following is not None,
        CAP=cap > 0,
        M=high,
        N=cut.outputs,
        K=deep,
        P=triton.next_power_of_2(max(parts, 1)),
        num_warps=4,
        num_stages=min(cut.stages, max(_shared_memory(source.device) // stage, 1)),
    )
    return target


def best(logits: Tensor) -> Tensor:
    """int64 [rows]: the largest of each row of float32 [rows, width], of equal ones the first."""
    rows, width = logits.shape
    found = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _best[(rows,)](logits, found, width, W=8192, num_warps=16)
    return found


class _Tile(NamedTuple):
    """How a linear layer is cut: a program makes `outputs` of all rows, reading `inputs` of 16 bits at a time, up to
    `stages` of them ahead."""

    outputs: int
    inputs: int
    stages: int


def _tile(outputs: int, inputs: int) -> _Tile:
    """Narrow, so that every part of the GPU reads weights; wider where there are programs enough anyhow.

    The best of sixteen on an H100, for layers of 576 to 8,192 inputs and 576 to 128,256 outputs.
    """
    if outputs > 4096:
        return _Tile(64, 128, 4)
    return _Tile(16 if outputs <= 2048 else 32, *((64, 8) if inputs < 2048 else (128, 6)))


@lru_cache
def _shared_memory(device: Any) -> int:
    """Bytes that a program may use for what it reads ahead; a kibibyte or two are for the rest."""
    if device.type != "cuda":
        return 1 << 16
    properties: Any = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 99 << 10)) - (2 << 10)


def _followed(value: Tensor, parts: int) -> Stream:
    squares = torch.empty((len(value), parts), dtype=torch.float32, device=value.device)
    return Stream(value, torch.empty_like(value), squares)


def _whole_rows(width: int) -> dict[str, int]:
    """Of kernels whose programs have a row each."""
    return {"WIDTH": width, "D": triton.next_power_of_2(width), "num_warps": 4 if width <= 2048 else 8}


@triton.jit
def tanh(value) -> tl.tensor:
    return 2.0 * tl.sigmoid(2.0 * value) - 1.0


@triton.jit
def _follow(value, inside, row, place, target, scaled, next_scale, WIDTH) -> tl.tensor:
    """Write a part of the stream and what the next norm reads of it; the part as it is written."""
    at = row * WIDTH + place
    value = value.to(target.dtype.element_ty)
    tl.store(target + at, value, inside)
    value = tl.where(inside, value.to(tl.float32), 0.0)
    factor = tl.load(next_scale + place, inside, 0.0)
    tl.store(scaled + at, (value * factor).to(target.dtype.element_ty), inside)
    return value


@triton.jit(do_not_specialize=["rows"])  # it is in masks only: one program for all numbers of rows
def _linear(
    value,
    squares,
    weight,
    bias,
    target,
    scaled,
    next_squares,
    next_scale,
    rows,
    outputs,
    eps,
    cap,
    INPUTS: tl.constexpr,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ADDS: tl.constexpr,
    CAP: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
) -> None:
    m = tl.program_id(1) * M + tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    k = tl.arange(0, K)
    second = weight + tl.cast(outputs, tl.int64) * INPUTS  # the rows that a gate lets through
    places = n[None, :].to(tl.int64) * INPUTS + k[:, None]
    inside = (m < rows)[:, None] & (n < outputs)[None, :]
    result = tl.zeros((M, N), tl.float32)
    passing = tl.zeros((M, N), tl.float32)
    if PARTS:
        p = tl.arange(0, P)
        sizes = tl.load(squares + m[:, None] * PARTS + p[None, :], (m < rows)[:, None] & (p < PARTS)[None, :], 0.0)
    for start in range(0, INPUTS, K):
        if INPUTS % K == 0:
            seen = (m < rows)[:, None]
            read = (n < outputs)[None, :]
        else:
            there = start + k < INPUTS
            seen = (m < rows)[:, None] & there[None, :]
            read = (n < outputs)[None, :] & there[:, None]
        part = tl.load(value + m[:, None] * INPUTS + start + k[None, :], seen, 0.0)
        result = tl.dot(part, tl.load(weight + start + places, read, 0.0), result, input_precision="ieee")
        if ACTIVATION != "":
            passing = tl.dot(part, tl.load(second + start + places, read, 0.0), passing, input_precision="ieee")
    if PARTS:  # the norm's last factor is the same for all of a row
        size = tl.rsqrt(tl.sum(sizes, 1) / INPUTS + eps)[:, None]
        result *= size
        passing *= size
    if BIAS:
        result += tl.load(bias + n, n < outputs, 0.0).to(tl.float32)[None, :]
        if ACTIVATION != "":
            passing += tl.load(bias + outputs + n, n < outputs, 0.0).to(tl.float32)[None, :]
    if ACTIVATION == "silu":
        result = result * tl.sigmoid(result) * passing
    if ACTIVATION == "gelu_tanh":
        inner = 0.7978845608028654 * (result + 0.044715 * result * result * result)
        result = result * tl.sigmoid(2.0 * inner) * passing
    if CAP:
        result = tanh(result / cap) * cap
    row = m[:, None].to(tl.int64)
    if ADDS:
        result += tl.load(target + row * outputs + n[None, :], inside, 0.0).to(tl.float32)
        result = _follow(result, inside, row, n[None, :], target, scaled, next_scale, outputs)
        part_of_row = next_squares + m * tl.num_programs(0) + tl.program_id(0)
        tl.store(part_of_row, tl.sum(result * result, 1), m < rows)
    else:
        tl.store(target + row * outputs + n[None, :], result.to(target.dtype.element_ty), inside)


@triton.jit
def _embed(tokens, weight, target, scaled, squares, next_scale, factor, WIDTH: tl.constexpr, D: tl.constexpr) -> None:
    row, d = tl.program_id(0), tl.arange(0, D)
    inside = d < WIDTH
    token = tl.load(tokens + row)
    value = tl.load(weight + token * WIDTH + d, inside, 0.0).to(tl.float32) * factor
    value = _follow(value, inside, row, d, target, scaled, next_scale, WIDTH)
    tl.store(squares + row, tl.sum(value * value, 0))


@triton.jit
def _add_normed(update, scale, target, scaled, squares, next_scale, eps, WIDTH: tl.constexpr, D: tl.constexpr) -> None:
    row, d = tl.program_id(0), tl.arange(0, D)
    inside = d < WIDTH
    value = tl.load(update + row * WIDTH + d, inside, 0.0).to(tl.float32)
    size = tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    value = value * size * tl.load(scale + d, inside, 0.0)
    value += tl.load(target + row * WIDTH + d, inside, 0.0).to(tl.float32)
    value = _follow(value, inside, row, d, target, scaled, next_scale, WIDTH)
    tl.store(squares + row, tl.sum(value * value, 0))


@triton.jit
def _best(logits, found, width, W: tl.constexpr) -> None:
    row, w = tl.program_id(0), tl.arange(0, W)
    most = tl.full((W,), float("-inf"), tl.float32)
    place = w
    for start in range(0, width, W):
        part = tl.load(logits + row.to(tl.int64) * width + start + w, start + w < width, float("-inf"))
        better = part > most
        most = tl.where(better, part, most)
        place = tl.where(better, start + w, place)
    place = tl.where(most == tl.max(most, 0), place, width - 1)
    tl.store(found + row, tl.min(place, 0).to(tl.int64))
