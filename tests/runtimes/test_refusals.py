"""What is refused when a package loads or answers, and that the message says what to do."""

import pickle

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from zoo import (
    IRIS,
    KINDS,
    TABLE,
    X,
    Y,
    function_kind,
    onnx_kind,
    signature,
    sklearn_kind,
    spec,
    torch_kind,
    write_package,
)

from foretell.core.errors import ConfigError, ModelFailed, PackageError, UntrustedCode
from foretell.core.settings import ReplicaSettings
from foretell.runtimes import load, loading

ONE_THREAD = ReplicaSettings(threads=1)


def function_package(folder, code, sig=IRIS, trust=True, **more):
    (folder / "model.py").write_text(code)
    return write_package(folder, "function", "model.py", sig, trust_code=trust, **more)


def answer(folder, code, sig=IRIS):
    return load(function_package(folder, code, sig), ONE_THREAD, trust_code=True).predict({"X": TABLE})


@pytest.mark.parametrize("make", [function_kind, torch_kind])
def test_code_in_a_package_does_not_run_without_trust(tmp_path, make):
    with pytest.raises(UntrustedCode, match="pass --trust-code if you trust whoever made it"):
        load(make(tmp_path).package, ONE_THREAD)


def test_a_manifest_that_hides_its_code_is_refused_all_the_same(tmp_path):
    marker = tmp_path / "ran"
    package = function_package(tmp_path, f"open({str(marker)!r}, 'w')\ndef predict(X): ...", trust=False)
    with pytest.raises(UntrustedCode, match=r"runs the Python file model\.py"):
        load(package, ONE_THREAD)
    assert not marker.exists()


def test_a_hidden_transform_is_refused_too(tmp_path):
    onnx_kind(tmp_path)
    (tmp_path / "transform.py").write_text("raise SystemExit")
    step = {"before": [{"kind": "custom"}]}
    package = write_package(tmp_path, "onnx", "model.onnx", IRIS, transform=step)
    with pytest.raises(UntrustedCode, match=r"transform\.py"):
        load(package, ONE_THREAD)


def test_a_pickle_is_refused_and_its_code_does_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Trap()))
    package = write_package(tmp_path, "sklearn", "model.pkl", IRIS)
    with pytest.raises(UntrustedCode, match="unpickling runs code"):
        load(package, ONE_THREAD)
    assert not marker.exists()


def test_a_trusted_pickle_answers(tmp_path):
    joblib.dump(LogisticRegression(max_iter=500).fit(X, Y), tmp_path / "model.joblib")
    package = write_package(tmp_path, "sklearn", "model.joblib", IRIS, trust_code=True)
    outputs = load(package, ONE_THREAD, trust_code=True).predict({"X": TABLE})
    assert outputs["probabilities"].shape == (len(TABLE), 3)


ARTIFACTS = ["onnx", "sklearn", "xgboost", "lightgbm", "torch", "function"]


@pytest.mark.parametrize("damage", ["cut short", "other bytes"])
@pytest.mark.parametrize("runtime", ARTIFACTS)
def test_a_corrupt_artifact_is_a_package_error_that_names_the_file(tmp_path, runtime, damage):
    package = KINDS[runtime](tmp_path).package
    whole = package.artifact.read_bytes()
    package.artifact.write_bytes(whole[: len(whole) // 2] if damage == "cut short" else b"\xde\xad(" * 100)
    with pytest.raises(PackageError, match=package.artifact.name):
        load(package, ONE_THREAD, trust_code=True)


@pytest.mark.parametrize("runtime", ["sklearn", "xgboost", "lightgbm"])
def test_a_wrong_number_of_features_is_found_when_the_package_loads(tmp_path, runtime):
    inner = KINDS[runtime](tmp_path).package
    sig = signature([spec("X", "FP32", -1, 5)], [spec("label", "INT64", -1)])
    with pytest.raises(PackageError, match=r"fitted on 4 features, model\.toml declares 5"):
        load(write_package(tmp_path, runtime, inner.manifest.artifact, sig), ONE_THREAD)


@pytest.mark.parametrize(
    ("sig", "message"),
    [
        (signature([spec("Z", "FP32", -1, 4)], []), r'declares the input "Z", the model has X FP32\[\?, 4\]'),
        (signature([spec("X", "FP64", -1, 4)], []), r"declares the input X FP64\[\?, 4\], the model has X FP32"),
        (signature([spec("X", "FP32", -1, 9)], []), "declares the input"),
        (signature([], []), "the model also needs the input X"),
        (signature([spec("X", "FP32", -1, 4)], [spec("score", "FP32", -1)]), 'declares the output "score"'),
    ],
)
def test_a_signature_that_contradicts_the_graph_is_a_package_error(tmp_path, sig, message):
    onnx_kind(tmp_path)
    with pytest.raises(PackageError, match=message):
        load(write_package(tmp_path, "onnx", "model.onnx", sig), ONE_THREAD)


def test_outputs_that_model_toml_leaves_out_are_not_answered(tmp_path):
    onnx_kind(tmp_path)
    sig = signature([spec("X", "FP32", -1, 4)], [spec("label", "INT64", -1)])
    outputs = load(write_package(tmp_path, "onnx", "model.onnx", sig), ONE_THREAD).predict({"X": TABLE})
    assert list(outputs) == ["label"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def predict(X): return X", "predict returned ndarray; return a dict of arrays with the keys"),
        ("def predict(X): return {'label': X[:, 0] > 1}", "but not probabilities"),
        (
            "def predict(X): return X[:-1, 0].astype(int), X[:-1, :3]",
            '11 rows for output "label", the batch had 12',
        ),
        ("def predict(X): return X[:, 0].astype(int), X", r"shape \[12, 4\].* says \[-1, 3\]"),
        ("def predict(X): return X[:, 0], X[:, :3]", 'returned dtype float32 for output "label", not INT64'),
        ("def predict(X): return None", "predict returned NoneType"),
        ("def predict(X): return 1 / 0", "the model raised ZeroDivisionError: division by zero"),
    ],
)
def test_an_unusable_answer_is_the_model_s_failure_and_says_what_came(tmp_path, code, message):
    with pytest.raises(ModelFailed, match=message):
        answer(tmp_path, code)


@pytest.mark.parametrize(
    "code",
    [
        "def predict(inputs): return inputs['X'].argmax(1), inputs['X'][:, :3]",
        "def predict(X): return {'probabilities': X[:, :3].tolist(), 'label': [0] * len(X), 'more': 1}",
        "import helper\ndef predict(X): return helper.zeros(X), X[:, :3]",
    ],
)
def test_a_function_may_take_names_or_a_dict_and_return_what_is_natural(tmp_path, code):
    (tmp_path / "helper.py").write_text("def zeros(X): return [0] * len(X)")
    assert list(answer(tmp_path, code)) == ["label", "probabilities"]
    assert not (tmp_path / "__pycache__").exists()


def test_a_function_of_text_may_return_strings(tmp_path):
    sig = signature([spec("X", "FP32", -1, 4)], [spec("word", "BYTES", -1)])
    words = answer(tmp_path, "def predict(X): return ['naïve'] * len(X)", sig)["word"]
    assert words[0] == "naïve".encode()


def test_a_file_that_defines_no_predict_is_a_package_error(tmp_path):
    with pytest.raises(PackageError, match="defines no function `predict`"):
        load(function_package(tmp_path, "prediction = 1"), ONE_THREAD, trust_code=True)


def test_an_unknown_option_names_the_nearest_one(tmp_path):
    onnx_kind(tmp_path)
    package = write_package(tmp_path, "onnx", "model.onnx", IRIS, options={"spining": True})
    with pytest.raises(PackageError, match=r'options\.spining is not known.*Did you mean "spinning"'):
        load(package, ONE_THREAD)


def test_an_option_of_the_wrong_type_is_a_package_error(tmp_path):
    onnx_kind(tmp_path)
    package = write_package(tmp_path, "onnx", "model.onnx", IRIS, options={"spinning": "yes"})
    with pytest.raises(PackageError, match=r"Expected `bool`, got `str` - at `\$\.spinning`"):
        load(package, ONE_THREAD)


@pytest.mark.parametrize("runtime", ["onnx", "sklearn", "xgboost", "lightgbm", "torch"])
def test_a_device_that_is_not_here_is_a_config_error(tmp_path, runtime):
    package = KINDS[runtime](tmp_path).package
    with pytest.raises(ConfigError, match='device "openvino"'):
        load(package, ReplicaSettings(threads=1, device="openvino"), trust_code=True)


def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(loading.RUNTIMES, "sklearn", "no_such_library")
    with pytest.raises(PackageError, match=r'needs the Python package "no_such_library".*pip install'):
        load(sklearn_kind(tmp_path).package, ONE_THREAD)


def test_tabular_transforms_need_the_artifact_s_own_signature(tmp_path):
    sklearn_kind(tmp_path)
    (tmp_path / "labels.json").write_text('["a", "b", "c"]')
    step = {"after": [{"kind": "labels", "input": "probabilities"}]}
    package = write_package(tmp_path, "sklearn", "model.skops", IRIS, transform=step)
    with pytest.raises(PackageError, match=r"needs its own signature .* as options\.signature"):
        load(package, ONE_THREAD)


def test_a_feature_matrix_may_come_as_columns(tmp_path):
    inner = sklearn_kind(tmp_path)
    names = ["a", "b", "c", "d"]
    sig = signature([spec(n, "FP32", -1) for n in names], list(IRIS.outputs))
    together = load(inner.package, ONE_THREAD).predict(inner.inputs)
    package = write_package(tmp_path, "sklearn", "model.skops", sig)
    apart = load(package, ONE_THREAD).predict({n: TABLE[:, i].copy() for i, n in enumerate(names)})
    np.testing.assert_array_equal(together["probabilities"], apart["probabilities"])


def test_messages_call_a_package_by_its_name_not_by_its_folder(tmp_path):
    (tmp_path / "3").mkdir()
    package = function_package(tmp_path / "3", "def predict(X): ...", package={"name": "house-prices"})
    with pytest.raises(UntrustedCode, match=r"^house-prices: "):
        load(package, ONE_THREAD)
