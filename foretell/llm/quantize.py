"""Weights as small integers: four bits in blocks, or eight bits with one scale an output. Pure arithmetic.

Written here rather than taken from ONNX Runtime's block quantizers, because those round a block's minimum to a whole
zero point: weights that were quantized before (GGUF's Q4_0, Q4_1, Q4_K) then shift by up to half a step a block, and
SmolLM2-135M lost 27 % perplexity. Kept as a number, the minimum gives such weights back exactly.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LIMIT = 63
"""Of numbers in eight bits. CPUs without VNNI add two products in 16 bits: 2 * 255 * 63 fits, 2 * 255 * 127 not."""

_LEVELS = 15
_CHUNK = 1 << 18
"""Weights quantized at a time: few enough for the processor's caches."""


class FourBits(NamedTuple):
    """Weights [n, k] in blocks along k: value = (number - zero) * scale + rest.

    `numbers` uint8 [n, blocks, size / 2], low half first, and `scales` float32 [n, blocks], as MatMulNBits reads them;
    `zeros` uint8 [n, blocks]. `rests` float32 [n, blocks] is what a whole zero point leaves of the minimum.
    """

    numbers: NDArray[np.uint8]
    scales: Floats
    zeros: NDArray[np.uint8]
    rests: Floats


class EightBits(NamedTuple):
    """Weights [n, k] = numbers * scale: `numbers` int8 [n, k], `scales` float32 [n]."""

    numbers: NDArray[np.int8]
    scales: Floats


def four_bits(weights: Floats, size: int) -> FourBits:
    """Quantize [n, k] in blocks of `size` (k need not divide by it) from minimum to maximum, then fit both.

    Weights that lie on sixteen evenly spaced levels a block are kept exactly.
    """
    n, k = weights.shape
    blocks = -(-k // size)
    numbers = np.empty((n * blocks, size // 2), np.uint8)
    scales, lows = np.empty(n * blocks, np.float32), np.empty(n * blocks, np.float32)
    rows = max(1, _CHUNK // (blocks * size))
    for start in range(0, n, rows):
        padded = np.pad(weights[start : start + rows], ((0, 0), (0, blocks * size - k)), mode="edge")
        part = slice(start * blocks, (start + rows) * blocks)
        levels, scales[part], lows[part] = _levels(np.ascontiguousarray(padded.reshape(-1, size).T))
        numbers[part] = (levels[0::2] | levels[1::2] << 4).T
    zeros = np.clip(np.rint(-lows / scales), 0, _LEVELS)
    rests = (lows + zeros * scales).reshape(n, blocks)
    whole = zeros.astype(np.uint8).reshape(n, blocks)
    return FourBits(numbers.reshape(n, blocks, size // 2), scales.reshape(n, blocks), whole, rests)


def beside(left: FourBits, right: FourBits) -> FourBits:
    """Weights [n, k + l] of weights [n, k] in whole blocks and [n, l]."""
    return FourBits(
        np.concatenate((left.numbers, right.numbers), axis=1),
        np.concatenate((left.scales, right.scales), axis=1),
        np.concatenate((left.zeros, right.zeros), axis=1),
        np.concatenate((left.rests, right.rests), axis=1),
    )


def packed(zeros: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Zeros [n, blocks] as MatMulNBits reads them: [n, ceil(blocks / 2)], low half first."""
    even = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
    both: NDArray[np.uint8] = even[:, 0::2] | even[:, 1::2] << np.uint8(4)
    return both


def columns(weights: Floats) -> EightBits:
    """Quantize [n, k] with one scale for each of the n outputs."""
    scales = _positive(np.abs(weights).max(axis=1) / np.float32(LIMIT))
    return EightBits(np.rint(weights / scales[:, None]).astype(np.int8), scales)


def _levels(blocks: Floats) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """(levels uint8 [size, m], scales [m], minima [m]) of blocks [size, m]."""
    low, high = blocks.min(axis=0), blocks.max(axis=0)
    scales = _positive((high - low) / np.float32(_LEVELS))
    if _spacing(blocks[:, :64], low[:64], high[:64])[0].all():
        spaced, spacing = _spacing(blocks, low, high)
        scales = np.where(spaced, spacing, scales)
    return _fit(blocks, low, scales)


def _spacing(blocks: Floats, low: Floats, high: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Which blocks lie on evenly spaced levels, having been quantized before, and the distance between these."""
    scales = np.zeros_like(low)
    left = np.arange(low.size)
    for steps in range(_LEVELS, 0, -1):  # how many levels apart minimum and maximum are
        tried = _positive((high[left] - low[left]) / np.float32(steps))
        levels = (blocks[:, left] - low[left]) / tried
        fits = np.abs(levels - np.rint(levels)).max(axis=0) < 2e-3
        scales[left[fits]] = tried[fits]
        left = left[~fits]
        if not left.size:
            break
    return scales > 0, scales


def _fit(blocks: Floats, low: Floats, scales: Floats) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """Round to levels, then choose scale and minimum with the least squared error for these levels."""
    levels = np.clip(np.rint((blocks - low) / scales), 0, _LEVELS)
    mean_level, mean = levels.mean(axis=0), blocks.mean(axis=0)
    centred = levels - mean_level
    slopes = (centred * blocks).sum(axis=0) / np.maximum((centred * centred).sum(axis=0), np.float32(1e-9))
    scales = np.where(slopes > 0, slopes, scales)
    return levels.astype(np.uint8), scales, mean - mean_level * scales


def _positive(scales: Floats) -> Floats:
    """Blocks of one value have no spread: any scale will do, but not zero."""
    return np.where(scales > 0, scales, np.float32(1))
