"""What a fitted scikit-learn model takes and makes, found by asking it: its answers to sample rows tell."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from sklearn.base import is_classifier

from foretell.core.errors import PackageError
from foretell.core.tensor import Signature, Tensor, Tensors, TensorSpec
from foretell.importers.draft import Draft, sample_rows
from foretell.importers.parity import ROWS
from foretell.store.package import SAMPLE
from foretell.store.sample import read_sample


def probe(model: Any, draft: Draft) -> tuple[Signature, Tensors]:
    """The signature of `model` and rows that it answers.

    Rows are those of the sample.json beside the model, else made up. A signature in the user's configuration is
    taken as it is. Raises `PackageError` if the model is not fitted or refuses all rows.
    """
    if "signature" in draft.config:
        signature = msgspec.convert(draft.config["signature"], Signature)
        return signature, _given(draft.folder, signature.inputs) or sample_rows(signature, ROWS)
    reason: Exception | None = None
    for spec in _inputs(model):
        for rows in _candidates(draft.folder, spec):
            try:
                return Signature((spec,), _outputs(model, _plain(rows))), {spec.name: rows}
            except Exception as error:
                reason = reason or error
    raise PackageError(
        f"{type(model).__name__} answers none of the sample rows that were made up for it ({reason}). Put rows that"
        ' it takes beside it as sample.json ({"X": [[…], …]}), or state its signature in model.toml'
    )


def _inputs(model: Any) -> list[TensorSpec]:
    width = getattr(model, "n_features_in_", None)
    if width is not None:
        return [TensorSpec("X", kind, (-1, int(width))) for kind in ("FP32", "FP64")]
    steps = getattr(model, "steps", None)
    first = steps[0][1] if steps else model
    if hasattr(first, "vocabulary_") or type(first).__name__ == "HashingVectorizer":
        return [TensorSpec("text", "BYTES", (-1,))]
    raise PackageError(
        f"{type(model).__name__} is not fitted, or does not say how many features it takes; fit it first"
    )


def _candidates(folder: Path, spec: TensorSpec) -> Iterator[Tensor]:
    given = _given(folder, (spec,))
    if given is not None:
        yield given[spec.name]
        return
    rows = sample_rows(Signature((spec,), ()), ROWS)[spec.name]
    yield rows
    if spec.datatype != "BYTES":  # logarithms and counts want rows without negative numbers
        yield np.abs(rows)
        yield np.ones_like(rows)


def _given(folder: Path, specs: tuple[TensorSpec, ...]) -> Tensors | None:
    path = folder / SAMPLE
    return read_sample(path.read_bytes(), specs, SAMPLE) if path.is_file() else None


def _plain(rows: Tensor) -> Tensor | list[str]:
    return [text.decode() for text in rows] if rows.dtype.kind == "O" else rows


def _outputs(model: Any, rows: Tensor | list[str]) -> tuple[TensorSpec, ...]:
    if not hasattr(model, "predict"):
        return (_spec("output", model.transform(rows)),)
    classifies = is_classifier(model)
    outputs = [_spec("label" if classifies else "prediction", model.predict(rows))]
    shares = model.predict_proba(rows) if classifies and hasattr(model, "predict_proba") else None
    # Models with several targets give a list of matrices, which is no tensor: those go without.
    if isinstance(shares, np.ndarray) and shares.ndim == 2:
        outputs.append(TensorSpec("probabilities", "FP32", (-1, shares.shape[1])))
    return tuple(outputs)


def _spec(name: str, result: Any) -> TensorSpec:
    array = np.asarray(result.toarray() if hasattr(result, "toarray") else result)
    kind = {"f": "FP32", "i": "INT64", "u": "INT64", "b": "INT64"}.get(array.dtype.kind, "BYTES")
    return TensorSpec(name, kind, (-1, *array.shape[1:]))
