"""scikit-learn models: to ONNX where that is equal and faster, else in skops format, which runs no code."""

from pathlib import Path
from typing import Any

import skops.io

from foretell.core.errors import PackageError, UntrustedCode
from foretell.core.tensor import Signature
from foretell.importers.draft import Draft
from foretell.importers.forms import Form, settle
from foretell.importers.graphs import name_outputs
from foretell.importers.probe import probe
from foretell.runtimes.sklearn import PLAIN_DATA, untrusted_types

_OPSETS = {"": 17, "ai.onnx.ml": 3}


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
    signature, rows = probe(model, draft)
    label = f"scikit-learn {type(model).__name__}"

    def native(folder: Path) -> Form:
        skops.io.dump(model, folder / "model.skops")
        unknown = untrusted_types(folder / "model.skops")
        return Form("sklearn", "model.skops", signature, runs_code=bool(unknown))

    settle(draft, native, lambda folder: _convert(model, signature, folder), label, rows)


def _convert(model: Any, signature: Signature, folder: Path) -> Form:
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    first = signature.inputs[0]
    if len(signature.inputs) > 1 or first.datatype not in ("FP32", "FP64") or len(first.shape) != 2:
        raise PackageError("only models of one matrix of numbers convert exactly")
    kind = FloatTensorType if first.datatype == "FP32" else DoubleTensorType
    arguments = {"initial_types": [(first.name, kind([None, first.shape[1]]))], "target_opset": _OPSETS}
    try:
        graph = skl2onnx.to_onnx(model, options={"zipmap": False}, **arguments)
    except NameError:  # what skl2onnx raises for models that have no such option
        graph = skl2onnx.to_onnx(model, **arguments)
    name_outputs(graph.graph, signature)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    return Form("onnx", "model.onnx", signature, converter=f"skl2onnx {skl2onnx.__version__}")
