"""XGBoost and LightGBM packages: boosters in their own JSON, UBJSON or text format, which hold no code."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from foretell.core.errors import ConfigError, PackageError
from foretell.core.settings import ReplicaSettings
from foretell.core.tensor import Signature, Tensor, Tensors, TensorSpec
from foretell.runtimes.columns import CLASS_NAMES, PROBABILITY_NAMES, classify, fit_output, matrix
from foretell.runtimes.options import artifact_signature, only_cpu, read_options
from foretell.store.package import Package

Score = Callable[[Tensor], Tensor]
"""A matrix [n, k] in, the booster's scores [n] or [n, c] out."""


class BoostingOptions(msgspec.Struct, frozen=True):
    """[options] of an xgboost or lightgbm package.

    classes: the label of each class number, where the model was fitted on other labels than 0, 1, 2, …
    signature: what the booster takes and makes, where transforms surround it.
    """

    classes: list[int | float | str] | None = None
    signature: Signature | None = None


class BoostingPredictor:
    """Outputs named label and probabilities are classes and their shares; any other is the plain score."""

    def __init__(self, score: Score, signature: Signature, classes: list[Any] | None) -> None:
        self._score: Score | None = score
        self._signature = signature
        self._classes = classes
        self._classifies = any(s.name in CLASS_NAMES | PROBABILITY_NAMES for s in signature.outputs)

    @property
    def signature(self) -> Signature:
        return self._signature

    def predict(self, inputs: Tensors) -> Tensors:
        assert self._score is not None, "closed"
        scores = self._score(matrix(inputs, self._signature))
        results = {"score": scores}
        if self._classifies:
            results |= classify(scores, self._classes)
        return {s.name: fit_output(results[_kind(s)], s) for s in self._signature.outputs}

    def close(self) -> None:
        self._score = None


def _kind(spec: TensorSpec) -> str:
    if spec.name in CLASS_NAMES:
        return "label"
    return "probabilities" if spec.name in PROBABILITY_NAMES else "score"


def open_xgboost(package: Package, threads: int, device: str) -> tuple[Score, int]:
    """The booster's score function and its number of features. Early-stopped boosters use their best trees."""
    xgboost = importlib.import_module("xgboost")
    try:
        booster = xgboost.Booster(model_file=str(package.artifact))
        booster.set_param({"nthread": threads, "device": device})
        features = booster.num_features()
        objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    except (xgboost.core.XGBoostError, UnicodeDecodeError) as error:  # its messages quote the file's bytes
        raise PackageError(f"{package.artifact.name} is not a booster xgboost can read: {_tail(error)}") from None
    best = booster.attr("best_iteration")
    trees = (0, int(best) + 1) if best is not None else (0, 0)
    if objective == "multi:softmax":
        raise PackageError(
            f"{package.artifact.name} has the objective multi:softmax, which gives no probabilities; save it with"
            " multi:softprob (the trees are the same)"
        )
    return lambda rows: booster.inplace_predict(rows, iteration_range=trees, validate_features=False), features


def look_through_lightgbm(path: Path) -> None:
    """Raise `PackageError` unless the file has a beginning and an end: lightgbm aborts the process on half of one."""
    text = path.read_bytes()
    if not text.startswith(b"tree") or b"\nend of trees" not in text:
        raise PackageError(f"{path.name} is not a lightgbm model in text format, or it is cut short")


def open_lightgbm(package: Package, threads: int) -> tuple[Score, int]:
    """The booster's score function and its number of features."""
    lightgbm = importlib.import_module("lightgbm")
    look_through_lightgbm(package.artifact)
    try:
        booster = lightgbm.Booster(model_file=str(package.artifact))
    except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as error:
        raise PackageError(f"{package.artifact.name} is not a booster lightgbm can read: {_tail(error)}") from None
    return lambda rows: np.asarray(booster.predict(rows, num_threads=threads)), booster.num_feature()


def _tail(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and "Stack trace" not in line]
    return (lines[0] if lines else type(error).__name__)[-300:]


def open_predictor(package: Package, settings: ReplicaSettings, trust_code: bool) -> BoostingPredictor:
    """Load the booster with the replica's threads; xgboost takes device cuda, lightgbm the CPU only."""
    manifest = package.manifest
    options = read_options(manifest, BoostingOptions)
    signature = artifact_signature(manifest, options.signature)
    if manifest.runtime == "xgboost":
        if settings.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f'device "{settings.device}": xgboost runs on cpu or cuda')
        score, features = open_xgboost(package, settings.threads, settings.device.replace("auto", "cpu"))
    else:
        only_cpu(settings, manifest.runtime)
        score, features = open_lightgbm(package, settings.threads)
    width = sum(s.shape[1] if len(s.shape) > 1 else 1 for s in signature.inputs)
    if all(-1 not in s.shape[1:] for s in signature.inputs) and width != features:
        raise PackageError(f"{package.artifact.name} was fitted on {features} features, model.toml declares {width}")
    return BoostingPredictor(score, signature, options.classes)
