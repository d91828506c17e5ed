"""Weights as small integers: what comes back, and what ONNX Runtime's kernels read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from foretell.llm.quantize import LIMIT, columns, four_bits

FLOATS = st.floats(-1e3, 1e3, width=32)


def widened(packed, count):
    """Nibbles, low first, as numbers."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)[..., :count].astype(np.float32)


def restored(blocks, k):
    n, _, half = blocks.numbers.shape
    zeros = blocks.zeros[..., None].astype(np.float32)
    values = (widened(blocks.numbers, half * 2) - zeros) * blocks.scales[..., None] + blocks.rests[..., None]
    return values.reshape(n, -1)[:, :k]


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 100)), elements=FLOATS),
    st.sampled_from([16, 32, 64]),
)
def test_four_bits_are_off_by_half_a_level_at_most_where_the_fit_does_not_trade_it_for_the_mean(weights, size):
    n, k = weights.shape
    blocks = four_bits(weights, size)
    assert blocks.numbers.shape == (n, -(-k // size), size // 2)
    padded = np.pad(weights, ((0, 0), (0, -k % size)), mode="edge").reshape(n, -1, size)
    level = (padded.max(2) - padded.min(2)) / 15
    error = np.abs(np.pad(restored(blocks, k) - weights, ((0, 0), (0, -k % size)))).reshape(n, -1, size)
    assert np.all((error**2).mean(2) <= (level / 2) ** 2 + 1e-5 * np.abs(padded).max() ** 2 + 1e-12)


@pytest.mark.parametrize("steps", [15, 11, 7, 1])
def test_weights_that_were_quantized_before_come_back_exactly(steps):
    random = np.random.default_rng(steps)
    levels = random.integers(0, steps + 1, (40, 8, 32))
    levels[..., 0], levels[..., 1] = 0, steps
    scales, lows = random.uniform(0.01, 0.1, (2, 40, 8, 1))
    weights = (levels * scales - lows).astype(np.float32).reshape(40, 256)
    assert np.abs(restored(four_bits(weights, 32), 256) - weights).max() < 1e-6


def test_symmetric_levels_need_no_rests():
    random = np.random.default_rng(0)
    levels = random.integers(-8, 8, (16, 4, 32))
    levels[..., 0] = -8
    weights = (levels * random.uniform(0.01, 0.1, (16, 4, 1))).astype(np.float32).reshape(16, 128)
    blocks = four_bits(weights, 32)
    assert np.all(np.abs(blocks.rests) < 1e-4 * blocks.scales)


def test_constant_and_zero_blocks_keep_their_value():
    weights = np.repeat(np.float32([[0.0, 0.25, -3.0]]), 32, axis=1)
    assert np.allclose(restored(four_bits(weights, 32), 96), weights, atol=1e-6)


def test_columns_stay_within_the_limit_that_sixteen_bit_sums_bear():
    weights = np.random.default_rng(1).standard_normal((12, 50)).astype(np.float32)
    weights[3] = 0
    numbers, scales = columns(weights)
    assert numbers.dtype == np.int8 and np.abs(numbers).max() == LIMIT
    assert np.all(np.abs(numbers * scales[:, None] - weights) <= scales[:, None] / 2 + 1e-6)
