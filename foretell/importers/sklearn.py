"""scikit-learn models: to ONNX where that is equal and faster, else in skops format, which runs no code."""

from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from sklearn.base import is_classifier

from foretell.core.errors import PackageError, UntrustedCode
from foretell.core.tensor import DTYPES, Signature, TensorSpec, datatype_of
from foretell.importers.draft import Draft
from foretell.importers.forms import Form, settle
from foretell.importers.graphs import name_outputs
from foretell.runtimes.sklearn import PLAIN_DATA, untrusted_types

_OPSET = 17


def import_file(path: Path, draft: Draft, kind: str) -> None:
    """Load a .skops file; types that skops cannot vouch for need --trust-code."""
    try:
        unknown = untrusted_types(path)
    except Exception as error:
        raise PackageError(f"{path}: not a readable skops file ({type(error).__name__}: {error})") from None
    if unknown and not draft.trusted:
        raise UntrustedCode(
            f"{path}: it holds types that skops cannot vouch for ({', '.join(unknown)}); loading them may run"
            " code. Pass --trust-code if you trust whoever made it"
        )
    import_object(skops.io.load(path, trusted=[*unknown, *PLAIN_DATA]), draft)


def import_object(model: Any, draft: Draft) -> None:
    """Any fitted estimator or pipeline."""
    signature = _signature(model)
    label = f"scikit-learn {type(model).__name__}"

    def native(folder: Path) -> Form:
        skops.io.dump(model, folder / "model.skops")
        unknown = untrusted_types(folder / "model.skops")
        return Form("sklearn", "model.skops", signature, runs_code=bool(unknown))

    settle(draft, native, lambda folder: _convert(model, signature, folder), label)


def _convert(model: Any, signature: Signature, folder: Path) -> Form:
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType

    if signature.inputs[0].datatype == "BYTES":
        raise PackageError("text vectorizers do not convert exactly")
    width = signature.inputs[0].shape[1]
    options = {"zipmap": False} if is_classifier(model) else None
    graph = skl2onnx.to_onnx(
        model, initial_types=[("X", FloatTensorType([None, width]))], options=options, target_opset=_OPSET
    )
    name_outputs(graph.graph, signature)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    outputs = signature.outputs
    if not is_classifier(model):  # skl2onnx gives every prediction a second axis
        outputs = tuple(TensorSpec(s.name, s.datatype, (*s.shape, 1)[:2]) for s in outputs)
    return Form(
        "onnx", "model.onnx", Signature(signature.inputs, outputs), converter=f"skl2onnx {skl2onnx.__version__}"
    )


def _signature(model: Any) -> Signature:
    width = getattr(model, "n_features_in_", None)
    if width is None and not _takes_text(model):
        raise PackageError(
            f"{type(model).__name__} is not fitted, or does not say how many features it takes; fit it first"
        )
    inputs = TensorSpec("text", "BYTES", (-1,)) if width is None else TensorSpec("X", "FP32", (-1, int(width)))
    return Signature((inputs,), _outputs(model))


def _takes_text(model: Any) -> bool:
    steps = getattr(model, "steps", None)
    first = steps[0][1] if steps else model
    return hasattr(first, "vocabulary_") or type(first).__name__ == "HashingVectorizer"


def _outputs(model: Any) -> tuple[TensorSpec, ...]:
    if is_classifier(model):
        classes = np.asarray(model.classes_)
        kind = "BYTES" if classes.dtype.kind in "OSU" else datatype_of(np.empty(0, classes.dtype))
        if DTYPES[kind].kind in "iu":
            kind = "INT64"
        label = TensorSpec("label", kind, (-1,))
        if not hasattr(model, "predict_proba"):
            return (label,)
        return (label, TensorSpec("probabilities", "FP32", (-1, len(classes))))
    if hasattr(model, "predict"):
        targets = getattr(model, "n_outputs_", 1)
        return (TensorSpec("prediction", "FP32", (-1, int(targets)) if targets > 1 else (-1,)),)
    return (TensorSpec("output", "FP32", (-1, len(model.get_feature_names_out()))),)
