"""Fitted models of each framework become packages that answer as the model itself does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretell.core.model import Predictor
from foretell.core.settings import ReplicaSettings
from foretell.importers import import_model
from foretell.runtimes import load
from foretell.store.manifest import Manifest
from foretell.store.package import Package

pytest.importorskip("sklearn")
pytest.importorskip("skl2onnx")
pytest.importorskip("skops")

from sklearn.cluster import KMeans
from sklearn.datasets import load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest, RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC

DIGITS, DIGIT = (part[:200] for part in load_digits(return_X_y=True))
PATIENTS, PROGRESS = load_diabetes(return_X_y=True)
BOTH = np.stack([PROGRESS, -PROGRESS], 1)


def opened(folder: Path, trust_code: bool = False) -> Predictor:
    return load(Package.open(folder), ReplicaSettings(threads=1), trust_code)


def imported(model: Any, folder: Path) -> tuple[Manifest, Predictor, list[str]]:
    lines: list[str] = []
    manifest = import_model(model, folder, report=lines.append)
    return manifest, opened(folder, manifest.trust_code), lines


CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "logistic regression": lambda: LogisticRegression(max_iter=200).fit(DIGITS, DIGIT),
    "network behind a scaler": lambda: make_pipeline(
        StandardScaler(), MLPClassifier((16,), max_iter=20, random_state=0)
    ).fit(DIGITS, DIGIT),
    "string classes": lambda: LogisticRegression(max_iter=200).fit(DIGITS, np.array([f"d{d}" for d in DIGIT])),
    "boolean classes": lambda: LogisticRegression(max_iter=200).fit(DIGITS, DIGIT > 4),
    "boosted histograms": lambda: HistGradientBoostingClassifier(max_iter=3).fit(DIGITS, DIGIT),
    "support vectors": lambda: SVC().fit(DIGITS, DIGIT),
    "linear support vectors": lambda: LinearSVC().fit(DIGITS, DIGIT),
    "several targets": lambda: MultiOutputClassifier(LogisticRegression(max_iter=50)).fit(
        DIGITS, np.stack([DIGIT > 4, DIGIT % 2], 1)
    ),
    "a transformer that no converter knows": lambda: make_pipeline(
        FunctionTransformer(np.log1p), LogisticRegression(max_iter=100)
    ).fit(DIGITS, DIGIT),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_gives_the_labels_of_the_model(tmp_path: Path, kind: str):
    model = CLASSIFIERS[kind]()
    manifest, predictor, _ = imported(model, tmp_path / "p")
    rows = DIGITS[:40].astype(np.float32)
    answer = predictor.predict({"X": rows})
    expected = model.predict(rows)
    if expected.dtype.kind == "U":
        expected = np.array([text.encode() for text in expected], dtype=object)
    assert (answer["label"] == expected).all()
    if "probabilities" in answer:
        assert np.allclose(answer["probabilities"], model.predict_proba(rows), atol=1e-4)
    assert manifest.signature.batchable


REGRESSORS: dict[str, Callable[[], Any]] = {
    "linear": lambda: LinearRegression().fit(PATIENTS, PROGRESS),
    "linear, two targets": lambda: LinearRegression().fit(PATIENTS, BOTH),
    "forest, two targets": lambda: RandomForestRegressor(5, random_state=0).fit(PATIENTS, BOTH),
    "outliers": lambda: IsolationForest(n_estimators=5, random_state=0).fit(PATIENTS),
    "clusters": lambda: KMeans(3, n_init=1, random_state=0).fit(PATIENTS.astype(np.float32)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REGRESSORS)
def test_a_prediction_has_the_shape_that_the_model_gives(tmp_path: Path, kind: str):
    model = REGRESSORS[kind]()
    manifest, predictor, _ = imported(model, tmp_path / "p")
    rows = PATIENTS[:40].astype(np.float32)
    answer, expected = predictor.predict({"X": rows})["prediction"], model.predict(rows)
    assert answer.shape == expected.shape
    assert np.allclose(answer, expected, rtol=1e-4, atol=1e-2)
    assert manifest.signature.outputs[0].datatype == ("FP32" if expected.dtype.kind == "f" else "INT64")


def test_a_transformer_gives_its_output(tmp_path: Path):
    model = PCA(3).fit(DIGITS)
    _, predictor, _ = imported(model, tmp_path / "p")
    rows = DIGITS[:5].astype(np.float32)
    assert np.allclose(predictor.predict({"X": rows})["output"], model.transform(rows), atol=1e-3)


def test_a_conversion_is_proved_and_the_proof_is_kept(tmp_path: Path):
    manifest, _, lines = imported(CLASSIFIERS["logistic regression"](), tmp_path / "p")
    assert manifest.runtime == "onnx" and manifest.parity is not None
    assert manifest.parity.rows == 64 and manifest.parity.max_abs_diff <= manifest.parity.tolerance
    assert manifest.lineage.converter.startswith("skl2onnx ")
    assert any("tolerance" in line for line in lines)


def test_a_model_that_does_not_convert_stays_native_and_says_why(tmp_path: Path):
    texts = ["a good film", "a bad film", "great", "awful"] * 3
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, ["pos", "neg"] * 6)
    manifest, predictor, lines = imported(model, tmp_path / "p")
    assert manifest.runtime == "sklearn" and manifest.artifact == "model.skops" and manifest.parity is None
    assert any("kept as sklearn" in line for line in lines)
    text = np.array([b"good", b"bad"], dtype=object)
    assert predictor.predict({"text": text})["label"].tolist() == [b"pos", b"neg"]


def test_a_conversion_that_changes_answers_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("foretell.importers.parity.TOLERANCE", 0.0)
    monkeypatch.setattr("foretell.importers.parity.prove.__defaults__", (0.0,))
    manifest, _, lines = imported(CLASSIFIERS["logistic regression"](), tmp_path / "p")
    assert manifest.runtime == "sklearn"
    assert any("probabilities" in line and "tolerance" in line for line in lines)


def test_a_conversion_that_is_slower_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("foretell.importers.forms.speedup", lambda *_: 0.5)
    manifest, _, lines = imported(CLASSIFIERS["logistic regression"](), tmp_path / "p")
    assert manifest.runtime == "sklearn"
    assert any("0.50× the speed" in line for line in lines)


def test_the_sample_in_the_package_runs(tmp_path: Path):
    manifest, predictor, _ = imported(CLASSIFIERS["logistic regression"](), tmp_path / "p")
    sample = Package.open(tmp_path / "p").sample()
    assert sample is not None and manifest.signature.check(sample) == 4
    assert set(predictor.predict(sample)) == {"label", "probabilities"}


def test_the_same_model_imports_to_the_same_digest(tmp_path: Path):
    model = CLASSIFIERS["logistic regression"]()
    imported(model, tmp_path / "a")
    imported(model, tmp_path / "b")
    one, other = Package.open(tmp_path / "a"), Package.open(tmp_path / "b")
    assert one.digest == other.digest or one.manifest.parity != other.manifest.parity


def xgboost_model(folder: Path) -> tuple[Path, Any]:
    xgboost = pytest.importorskip("xgboost")
    model = xgboost.XGBClassifier(n_estimators=5).fit(DIGITS, DIGIT)
    model.save_model(folder / "booster.json")
    return folder / "booster.json", model


def lightgbm_model(folder: Path) -> tuple[Path, Any]:
    lightgbm = pytest.importorskip("lightgbm")
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(DIGITS, DIGIT)
    model.booster_.save_model(folder / "booster.txt")
    return folder / "booster.txt", model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [xgboost_model, lightgbm_model])
@pytest.mark.parametrize("form", ["file", "object"])
def test_a_booster_gives_the_labels_and_shares_of_the_model(tmp_path: Path, make: Callable, form: str):
    pytest.importorskip("onnxmltools")
    path, model = make(tmp_path)
    _, predictor, _ = imported(path if form == "file" else model, tmp_path / "p")
    rows = DIGITS[:40].astype(np.float32)
    answer = predictor.predict({"X": rows})
    assert (answer["label"] == model.predict(rows)).all()
    assert np.allclose(answer["probabilities"], model.predict_proba(rows), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_booster_with_named_classes_keeps_the_names(tmp_path: Path):
    lightgbm = pytest.importorskip("lightgbm")
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(DIGITS, np.where(DIGIT > 4, "high", "low"))
    manifest, predictor, lines = imported(model, tmp_path / "p")
    assert manifest.runtime == "lightgbm" and any("names of the classes" in line for line in lines)
    rows = DIGITS[:10].astype(np.float32)
    assert [text.decode() for text in predictor.predict({"X": rows})["label"]] == model.predict(rows).tolist()


def test_a_booster_that_answers_with_classes_alone_gets_its_probabilities_back(tmp_path: Path):
    xgboost = pytest.importorskip("xgboost")
    booster = xgboost.train({"objective": "multi:softmax", "num_class": 10}, xgboost.DMatrix(DIGITS, DIGIT), 3)
    _, predictor, _ = imported(booster, tmp_path / "p")
    rows = DIGITS[:40].astype(np.float32)
    answer = predictor.predict({"X": rows})
    assert (answer["label"] == booster.predict(xgboost.DMatrix(rows))).all()
    assert np.allclose(answer["probabilities"].sum(1), 1, atol=1e-5)
