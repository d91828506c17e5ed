"""Attention of a decoding step as a single kernel, in Triton: each slot is read as far as it is filled.

Norms and turns the heads, writes the new key and value, and shares long sequences out among programs. Knows no spec.
"""
# ruff: noqa: ANN001, N803 - kernels have pointers and constants of the compiler for arguments

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from foretell.llm.torch_kernels import tanh

_SPLITS = 16
"""Programs at most that share the positions of one sequence's heads."""
_LEAST = 256
"""Positions of a sequence below which it isn't worth while to share them."""
_PROGRAMS = 512
"""So many attention programs keep a GPU busy."""
_BLOCK_BYTES = 1 << 14
"""Keys, or values, that an attention program reads at once."""


class Heads(NamedTuple):
    """`heads` queries share `kv_heads` keys and values of `width` numbers.

    `window` and `cap` as the spec has them, 0: none. `norms`: the weights of queries' and keys', where they are normed.
    """

    heads: int
    kv_heads: int
    width: int
    scale: float
    window: int
    cap: float
    norms: tuple[Tensor, Tensor] | None
    eps: float


class Scratch:
    """Memory in which programs that share a sequence meet; for one launch after the other."""

    def __init__(self, rows: int, heads: int, kv_heads: int, width: int, device: Any) -> None:
        shape = (rows, heads, splits(rows, kv_heads), width + 2)
        self.parts = torch.empty(shape, dtype=torch.float32, device=device)
        self.counts = torch.zeros((rows, kv_heads), dtype=torch.int32, device=device)


def splits(rows: int, kv_heads: int) -> int:
    return int(min(_SPLITS, triton.next_power_of_2(triton.cdiv(_PROGRAMS, rows * kv_heads))))


def attend(
    packed: Tensor,
    heads: Heads,
    turns: tuple[Tensor, Tensor],
    positions: Tensor,
    caches: tuple[Tensor, Tensor],
    target: Tensor,
    scratch: Scratch,
) -> Tensor:
    """Attention of one token of each of the first slots over what its slot holds; writes the token's key and value.

    `packed` [rows, (heads + 2 kv_heads) * width] holds queries, keys and values as the linear layer made them, `turns`
    cosines and sines [context + 1, half], `positions` int64 [rows], `caches` keys and values [slots, kv_heads,
    context + 1, width]; `target` is [rows, heads * width]. A token behind the context is an idle slot's: it sees
    itself alone.
    """
    rows, shared = len(packed), heads.heads // heads.kv_heads
    wide = triton.next_power_of_2(max(heads.width, 16))
    norms = heads.norms or turns
    _attend[(rows, heads.kv_heads, splits(rows, heads.kv_heads))](
        packed,
        *norms,
        *turns,
        positions,
        *caches,
        target,
        scratch.parts,
        scratch.counts,
        caches[0].shape[2] - 1,
        heads.eps,
        heads.scale,
        heads.cap,
        heads.window,
        _LEAST,
        KV=heads.kv_heads,
        SHARED=shared,
        WIDTH=heads.width,
        HALF=turns[0].shape[1],
        NORM=heads.norms is not None,
        CAP=heads.cap > 0,
        WINDOW=heads.window > 0,
        SPLITS=_SPLITS,
        Q=max(16, triton.next_power_of_2(shared)),
        D=wide,
        S=max(16, min(128, _BLOCK_BYTES // (wide * packed.element_size()))),
        num_warps=4,
        num_stages=2,
    )
    return target


@triton.jit
def _turned(
    heads,
    there,
    scale,
    cosines,
    sines,
    position,
    eps,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
    D: tl.constexpr,
) -> tl.tensor:
    """Heads [r, D] in float32, normed and turned by their position; what lies beyond the rotary's stays."""
    d = tl.arange(0, D)
    first, turns = d < HALF, d < 2 * HALF
    angle = position * HALF + tl.where(first, d, d - HALF)
    cosine = tl.load(cosines + angle, turns, 1.0)
    sine = tl.load(sines + angle, turns, 0.0)
    sine = tl.where(first, -sine, sine)
    partner = tl.where(first, d + HALF, tl.where(turns, d - HALF, d))
    inside = there & (d < WIDTH)[None, :]
    own = tl.load(heads + d[None, :], inside, 0.0).to(tl.float32)
    other = tl.load(heads + partner[None, :], inside, 0.0).to(tl.float32)
    if NORM:
        size = tl.rsqrt(tl.sum(own * own, 1) / WIDTH + eps)[:, None]
        own *= size * tl.load(scale + d, d < WIDTH, 0.0)[None, :]
        other *= size * tl.load(scale + partner, d < WIDTH, 0.0)[None, :]
    return own * cosine[None, :] + other * sine[None, :]


@triton.jit
def _together(
    parts,
    shares,
    inside,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    Q: tl.constexpr,
    D: tl.constexpr,
) -> tl.tensor:
    """What all programs of a sequence's heads found, in their order, whichever came last: sums round the same way."""
    q, d = tl.arange(0, Q), tl.arange(0, D)
    most = tl.full((Q,), float("-inf"), tl.float32)
    total = tl.zeros((Q,), tl.float32)
    summed = tl.zeros((Q, D), tl.float32)
    for number in tl.static_range(SPLITS):
        part = parts + number * SHARED * (WIDTH + 2)
        there = tl.where(q < SHARED, number, SPLITS) < shares
        part_most = tl.load(part + WIDTH, there, float("-inf"), cache_modifier=".cg")
        part_total = tl.load(part + WIDTH + 1, there, 0.0, cache_modifier=".cg")
        part_summed = tl.load(part[:, None] + d[None, :], there[:, None] & inside, 0.0, cache_modifier=".cg")
        higher = tl.maximum(tl.maximum(most, part_most), -1e30)  # rows that are none: infinities have no difference
        fade, weight = tl.exp(most - higher), tl.exp(part_most - higher)
        total = total * fade + part_total * weight
        summed = summed * fade[:, None] + part_summed * weight[:, None]
        most = higher
    return summed / total[:, None]


@triton.jit
def _attend(
    packed,
    query_scale,
    key_scale,
    cosines,
    sines,
    positions,
    keys,
    values,
    target,
    parts,
    counts,
    context,
    eps,
    scale,
    cap,
    window,
    least,
    KV: tl.constexpr,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
    CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLITS: tl.constexpr,
    Q: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
) -> None:
    """One program: the queries that share a key, over a part of a slot's positions; the last of them adds up."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + row).to(tl.int32)
    first = 0
    if WINDOW:
        first = tl.maximum(position - window + 1, 0)
    first = tl.where(position < context, first, position)
    share = tl.maximum(tl.cdiv(position - first, tl.num_programs(2)), least)
    share = tl.cdiv(share, S) * S
    shares = tl.maximum(tl.cdiv(position - first, share), 1)
    if split >= shares:
        return
    q, d, s = tl.arange(0, Q), tl.arange(0, D), tl.arange(0, S)
    wide = d < WIDTH
    real = (q < SHARED)[:, None]
    base = packed + row * (SHARED + 2) * KV * WIDTH
    query_row = base + (head * SHARED + q[:, None]) * WIDTH
    queries = _turned(query_row, real, query_scale, cosines, sines, position, eps, WIDTH, HALF, NORM, D)
    queries = queries.to(keys.dtype.element_ty)
    # the token itself: the first program sees it, and writes it for those that come
    own = tl.arange(0, 1) == split
    alone = tl.arange(0, 1)[:, None]
    key_row = base + (SHARED * KV + head + alone) * WIDTH
    key = _turned(key_row, alone == 0, key_scale, cosines, sines, position, eps, WIDTH, HALF, NORM, D)
    key = key.to(keys.dtype.element_ty)
    value = tl.load(base + ((SHARED + 1) * KV + head + alone) * WIDTH + d[None, :], wide[None, :], 0.0)
    slot = (row.to(tl.int64) * KV + head) * (context + 1) * WIDTH
    new = slot + position * WIDTH + alone * WIDTH + d[None, :]
    tl.store(keys + new, key, wide[None, :] & own[:, None])
    tl.store(values + new, value, wide[None, :] & own[:, None])
    score = tl.sum(queries.to(tl.float32) * key.to(tl.float32), 1) * scale
    if CAP:
        score = tanh(score / cap) * cap
    most = tl.where(own, score, float("-inf"))
    total = tl.where(own & (q >= 0), 1.0, 0.0)
    summed = tl.where(own[:, None] & (q >= 0)[:, None], value.to(tl.float32), 0.0)
    begin = first + split * share
    end = tl.minimum(begin + share, position)
    for start in range(begin, end, S):
        at = start + s
        there = at < end
        block = tl.load(keys + slot + at[None, :] * WIDTH + d[:, None], there[None, :] & wide[:, None], 0.0)
        scores = tl.dot(queries, block, input_precision="ieee") * scale
        if CAP:
            scores = tanh(scores / cap) * cap
        scores = tl.where(there[None, :], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        fade = tl.exp(most - higher)
        total = total * fade + tl.sum(weights, 1)
        block = tl.load(values + slot + at[:, None] * WIDTH + d[None, :], there[:, None] & wide[None, :], 0.0)
        summed = tl.dot(weights.to(block.dtype), block, summed * fade[:, None], input_precision="ieee")
        most = higher
    inside = real & wide[None, :]
    result = target + row * SHARED * KV * WIDTH + (head * SHARED + q[:, None]) * WIDTH + d[None, :]
    if shares == 1:
        tl.store(result, (summed / total[:, None]).to(target.dtype.element_ty), inside)
        return
    group = row * KV + head
    theirs = parts + group * tl.num_programs(2) * SHARED * (WIDTH + 2) + q * (WIDTH + 2)
    mine = theirs + split * SHARED * (WIDTH + 2)
    tl.store(mine[:, None] + d[None, :], summed, inside)
    tl.store(mine + WIDTH, most, q < SHARED)
    tl.store(mine + WIDTH + 1, total, q < SHARED)
    tl.debug_barrier()  # all of the program has written before it is counted
    if tl.atomic_add(counts + group, 1) < shares - 1:
        return
    tl.store(counts + group, 0)
    summed = _together(theirs, shares, inside, SHARED, WIDTH, SPLITS, Q, D)
    tl.store(result, summed.to(target.dtype.element_ty), inside)
