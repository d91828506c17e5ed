"""XGBoost and LightGBM models: to ONNX where that is equal and faster, else in the booster's own text format."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from foretell.core.errors import PackageError
from foretell.core.tensor import Signature, TensorSpec
from foretell.importers.draft import Draft
from foretell.importers.forms import Form, settle
from foretell.importers.graphs import name_outputs
from foretell.runtimes.boosting import look_through_lightgbm

_OPSET = 15


def import_file(path: Path, draft: Draft, kind: str) -> None:
    """A saved booster: XGBoost JSON or UBJSON, LightGBM text."""
    if kind == "xgboost":
        import xgboost

        try:
            _import_xgboost(xgboost.Booster(model_file=str(path)), None, draft)
        except (xgboost.core.XGBoostError, UnicodeDecodeError) as error:  # its messages quote the file's bytes
            raise PackageError(f"{path}: not a booster xgboost can read ({str(error).splitlines()[0]})") from None
        return
    import lightgbm

    look_through_lightgbm(path)
    try:
        booster = lightgbm.Booster(model_file=str(path))
    except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as error:
        raise PackageError(f"{path}: not a booster lightgbm can read ({error})") from None
    _import_lightgbm(booster, None, draft)


def import_object(model: Any, draft: Draft) -> None:
    """A Booster, or a fitted estimator of either library's scikit-learn interface (its class names are kept)."""
    classes = getattr(model, "classes_", None)
    if type(model).__module__.startswith("xgboost"):
        _import_xgboost(model.get_booster() if hasattr(model, "get_booster") else model, classes, draft)
    else:
        _import_lightgbm(getattr(model, "booster_", model), classes, draft)


def _import_xgboost(booster: Any, classes: Any, draft: Draft) -> None:
    learner = json.loads(booster.save_config())["learner"]
    objective = learner["objective"]["name"]
    if objective == "multi:softmax":  # the same trees, but answering with the class alone
        objective = "multi:softprob"
        booster = booster.copy()
        booster.set_param({"objective": objective})
    count = int(learner["learner_model_param"]["num_class"])
    signature = _signature(booster.num_features(), objective.startswith(("binary:logistic", "multi:")), count, classes)

    def native(folder: Path) -> Form:
        booster.save_model(folder / "model.json")
        return Form("xgboost", "model.json", signature, _options(classes))

    def convert(folder: Path) -> Form:
        from onnxmltools import __version__, convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType

        _refuse_named(classes)
        shape = [("X", FloatTensorType([None, booster.num_features()]))]
        # The converter knows features by their position only.
        plain = booster.copy()
        plain.feature_names = [f"f{i}" for i in range(booster.num_features())]
        graph = convert_xgboost(plain, initial_types=shape, target_opset=_OPSET)
        return _onnx_form(graph, signature, folder, f"onnxmltools {__version__}")

    settle(draft, native, convert, f"XGBoost booster ({objective})")


def _import_lightgbm(booster: Any, classes: Any, draft: Draft) -> None:
    objective = _lightgbm_objective(booster)
    count = booster.num_model_per_iteration()
    signature = _signature(booster.num_feature(), objective in ("binary", "multiclass"), count, classes)

    def native(folder: Path) -> Form:
        booster.save_model(folder / "model.txt")
        return Form("lightgbm", "model.txt", signature, _options(classes))

    def convert(folder: Path) -> Form:
        from onnxmltools import __version__, convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType

        _refuse_named(classes)
        shape = [("X", FloatTensorType([None, booster.num_feature()]))]
        graph = convert_lightgbm(booster, initial_types=shape, zipmap=False, target_opset=_OPSET)
        return _onnx_form(graph, signature, folder, f"onnxmltools {__version__}")

    settle(draft, native, convert, f"LightGBM booster ({objective})")


def _lightgbm_objective(booster: Any) -> str:
    for line in booster.model_to_string(num_iteration=1).splitlines():
        if line.startswith("objective="):
            return str(line.removeprefix("objective=").split()[0])
    return "custom"


def _signature(width: int, classifies: bool, count: int, classes: Any) -> Signature:
    inputs = (TensorSpec("X", "FP32", (-1, width)),)
    if not classifies:
        return Signature(inputs, (TensorSpec("prediction", "FP32", (-1, count) if count > 1 else (-1,)),))
    named = classes is not None and np.asarray(classes).dtype.kind in "OSU"
    label = TensorSpec("label", "BYTES" if named else "INT64", (-1,))
    return Signature(inputs, (label, TensorSpec("probabilities", "FP32", (-1, max(count, 2)))))


def _options(classes: Any) -> dict[str, Any]:
    plain = None if classes is None else np.asarray(classes).tolist()
    return {} if plain is None or plain == list(range(len(plain))) else {"classes": plain}


def _refuse_named(classes: Any) -> None:
    if _options(classes):
        raise PackageError("the ONNX form would lose the names of the classes")


def _onnx_form(graph: Any, signature: Signature, folder: Path, converter: str) -> Form:
    name_outputs(graph.graph, signature)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    return Form("onnx", "model.onnx", signature, converter=converter)
