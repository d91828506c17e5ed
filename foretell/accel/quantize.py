"""ONNX Runtime's own block quantizers, from weights [n, k] to what MatMulNBits reads. Knows no layers or models."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnxruntime.capi import _pybind_state as kernels


class Blocks(NamedTuple):
    """Weights [n, k] in blocks along k: value = (number - zero) * scale.

    `numbers` uint8 [n, blocks, block_size * bits / 8], low bits first. `scales` float32 [n, blocks]. `zeros` uint8
    [n, ceil(blocks * bits / 8)], packed as the numbers are; None when every zero is 2 ** (bits - 1).
    """

    numbers: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None


def quantize_blocks(weights: NDArray[np.float32], bits: int, block_size: int, symmetric: bool) -> Blocks:
    """Quantize float32 [n, k] to 4 or 8 `bits`; `block_size` is a power of two from 16 on, k need not divide by it."""
    n, k = weights.shape
    blocks = -(-k // block_size)
    numbers = np.zeros((n, blocks, block_size * bits // 8), np.uint8)
    scales = np.zeros(n * blocks, np.float32)
    zeros = np.zeros((n, (blocks * bits + 7) // 8), np.uint8)
    quantize = {4: kernels.quantize_matmul_4bits, 8: kernels.quantize_matmul_8bits}[bits]
    quantize(numbers, np.ascontiguousarray(weights.T), scales, zeros.reshape(-1), block_size, n, k, symmetric)
    return Blocks(numbers, scales.reshape(n, blocks), None if symmetric else zeros)
