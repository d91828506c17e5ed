"""Tables of cosines and sines for rotary positions (Su et al. 2021, arXiv 2104.09864), with the usual stretchings."""

import math

import numpy as np
from numpy.typing import NDArray

from foretell.llm.spec import Rotary, RotaryScaling


def rotary_tables(rotary: Rotary, context: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, float32 [context, rotary.dim / 2]."""
    exponents = np.arange(0, rotary.dim, 2, dtype=np.float64) / rotary.dim
    frequencies = 1.0 / rotary.base**exponents
    amplitude = 1.0
    if rotary.scaling is not None:
        frequencies = _stretch(frequencies, rotary.scaling, context)
        amplitude = rotary.scaling.attention_factor
    angles = np.outer(np.arange(context, dtype=np.float64), frequencies)
    return (np.cos(angles) * amplitude).astype(np.float32), (np.sin(angles) * amplitude).astype(np.float32)


def _stretch(frequencies: NDArray[np.float64], scaling: RotaryScaling, context: int) -> NDArray[np.float64]:
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "longrope":
        factors = scaling.long if context > scaling.original else scaling.short
        return frequencies / np.asarray(factors, np.float64)
    wavelengths = 2 * math.pi / frequencies
    smooth = (scaling.original / wavelengths - scaling.low) / (scaling.high - scaling.low)
    smooth = np.clip(smooth, 0.0, 1.0)  # 0: long waves, divided by the factor; 1: short waves, left as they are
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
