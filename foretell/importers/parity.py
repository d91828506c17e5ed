"""Is the converted model the same model, and is it faster? Compared on sample rows before anything registers."""

import time

import numpy as np
from numpy.typing import NDArray

from foretell.core.errors import PackageError
from foretell.core.model import Predictor
from foretell.core.tensor import Tensor, Tensors
from foretell.store.manifest import Parity

TOLERANCE = 1e-4
"""Allowed |difference| of a float output, absolute plus relative to its size."""

ROWS = 64
_TIMED_RUNS = 9


def prove(
    native: Predictor, converted: Predictor, inputs: Tensors, against: str, tolerance: float = TOLERANCE
) -> Parity:
    """Compare all outputs on `inputs`. Raises `PackageError` that names the output and the row that differ."""
    expected, got = native.predict(inputs), converted.predict(inputs)
    worst = 0.0
    decided = ~_ties(expected, tolerance)
    for name, reference in expected.items():
        worst = max(worst, _compare(name, reference, got[name], tolerance, decided))
    return Parity(rows=len(next(iter(inputs.values()))), tolerance=tolerance, max_abs_diff=worst, against=against)


def _ties(outputs: Tensors, tolerance: float) -> NDArray[np.bool_]:
    """Rows in which two classes are equally likely: either may be the label."""
    rows = len(next(iter(outputs.values())))
    shares = outputs.get("probabilities")
    if shares is None or shares.ndim != 2 or shares.shape[1] < 2:
        return np.zeros(rows, dtype=bool)
    top = np.sort(shares, axis=1)
    tied: NDArray[np.bool_] = top[:, -1] - top[:, -2] <= 2 * tolerance
    return tied


def _compare(name: str, reference: Tensor, array: Tensor, tolerance: float, decided: NDArray[np.bool_]) -> float:
    if array.shape == (*reference.shape, 1):
        array = array[..., 0]
    if reference.shape != array.shape:
        raise PackageError(
            f'parity: output "{name}" has shape {list(array.shape)} after conversion, {list(reference.shape)} before'
        )
    if reference.dtype.kind != "f":
        same = (reference == array) | ~decided.reshape(-1, *[1] * (reference.ndim - 1))
        if not same.all():
            row = int(np.argmin(same.reshape(len(same), -1).all(axis=1)))
            raise PackageError(
                f'parity: output "{name}" differs in row {row}: {reference[row]!r} before conversion,'
                f" {array[row]!r} after"
            )
        return 0.0
    difference = np.abs(reference.astype(np.float64) - array.astype(np.float64))
    excess = difference - tolerance * (1.0 + np.abs(reference))
    if not (excess <= 0).all():
        row = int(np.argmax(excess.reshape(len(excess), -1).max(axis=1)))
        raise PackageError(
            f'parity: output "{name}" differs by {difference[row].max():.3g} in row {row}, the tolerance is'
            f" {tolerance:g} (absolute plus relative)"
        )
    return float(difference.max(initial=0.0))


def speedup(native: Predictor, converted: Predictor, inputs: Tensors) -> float:
    """How many times faster the converted model is: medians of one row and of all rows, averaged."""
    one = {name: array[:1] for name, array in inputs.items()}
    ratios = [_seconds(native, rows) / _seconds(converted, rows) for rows in (one, inputs)]
    return float(np.sqrt(ratios[0] * ratios[1]))


def _seconds(predictor: Predictor, inputs: Tensors) -> float:
    times = []
    for _ in range(_TIMED_RUNS):
        began = time.perf_counter()
        predictor.predict(inputs)
        times.append(time.perf_counter() - began)
    return float(np.median(times))
