"""What `import_model` recognises, refuses and asks trust for; what it makes of the files beside a model."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from foretell.core.errors import PackageError, UntrustedCode
from foretell.core.settings import ReplicaSettings
from foretell.importers import import_model
from foretell.runtimes import load
from foretell.store.manifest import LabelsStep, NormalizeStep, PoolStep, TextStep
from foretell.store.package import Package, seal

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402


def save_graph(path: Path, nodes: list, inputs: list, outputs: list, initializers: list | None = None) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def value(name: str, kind: int, shape: list) -> object:
    return helper.make_tensor_value_info(name, kind, shape)


def doubler(path: Path, batch: object = "n") -> Path:
    return save_graph(
        path,
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [value("x", TensorProto.FLOAT, [batch, 3])],
        [value("y", TensorProto.FLOAT, [batch, 3])],
    )


def encoder(path: Path) -> Path:
    """input_ids, attention_mask → last_hidden_state [n, t, 4], each token's vector being its id four times."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "m"], ["fm"]),
        helper.make_node("Unsqueeze", ["fm", "last"], ["u"]),
        helper.make_node("Concat", ["u", "u", "u", "u"], ["last_hidden_state"], axis=2),
    ]
    tokens = [value(name, TensorProto.INT64, ["n", "t"]) for name in ("input_ids", "attention_mask")]
    out = [value("last_hidden_state", TensorProto.FLOAT, ["n", "t", 4])]
    return save_graph(path, nodes, tokens, out, [helper.make_tensor("last", TensorProto.INT64, [1], [2])])


def tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1, "bad": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(path))


def test_an_onnx_file_keeps_its_signature(tmp_path: Path):
    manifest = import_model(doubler(tmp_path / "m.onnx"), tmp_path / "p")
    assert [str(s) for s in (*manifest.signature.inputs, *manifest.signature.outputs)] == [
        "x FP32[?, 3]",
        "y FP32[?, 3]",
    ]
    assert manifest.lineage.source == "m.onnx" and len(manifest.lineage.source_sha256) == 64
    predictor = load(Package.open(tmp_path / "p"), ReplicaSettings(threads=1))
    assert predictor.predict({"x": np.ones((2, 3), np.float32)})["y"].tolist() == [[2, 2, 2]] * 2


def test_a_fixed_batch_is_kept_and_told(tmp_path: Path):
    lines: list[str] = []
    manifest = import_model(doubler(tmp_path / "m.onnx", batch=3), tmp_path / "p", report=lines.append)
    assert not manifest.signature.batchable
    assert any("fixed" in line for line in lines)
    sample = Package.open(tmp_path / "p").sample()
    assert sample is not None and sample["x"].shape == (3, 3)


def test_a_tokenizer_beside_an_encoder_makes_a_text_embedder(tmp_path: Path):
    encoder(tmp_path / "model" / "encoder.onnx")
    tokenizer(tmp_path / "model" / "tokenizer.json")
    manifest = import_model(tmp_path / "model", tmp_path / "p")
    assert manifest.transform.before == (TextStep(),)
    assert manifest.transform.after == (PoolStep(input="last_hidden_state"), NormalizeStep(output="embedding"))
    assert [str(s) for s in manifest.signature.inputs] == ["text BYTES[?]"]
    assert [str(s) for s in manifest.signature.outputs] == ["embedding FP32[?, 4]"]
    predictor = load(Package.open(tmp_path / "p"), ReplicaSettings(threads=1))
    answer = predictor.predict({"text": np.array([b"good", b"bad good"], dtype=object)})["embedding"]
    assert np.allclose(answer, 0.5)


def test_labels_beside_a_classifier_name_its_classes(tmp_path: Path):
    doubler(tmp_path / "model" / "m.onnx")
    (tmp_path / "model" / "labels.json").write_text('["cat", "dog", "eel"]')
    manifest = import_model(tmp_path / "model", tmp_path / "p")
    assert manifest.transform.after == (LabelsStep(input="y"),)
    predictor = load(Package.open(tmp_path / "p"), ReplicaSettings(threads=1))
    answer = predictor.predict({"x": np.array([[0, 9, 0]], np.float32)})
    assert answer["label"].tolist() == [b"dog"] and answer["probability"][0] > 0.99


def test_labels_that_fit_no_output_are_refused(tmp_path: Path):
    doubler(tmp_path / "model" / "m.onnx")
    (tmp_path / "model" / "labels.json").write_text('["cat", "dog"]')
    with pytest.raises(PackageError, match=r"labels\.json has 2 names"):
        import_model(tmp_path / "model", tmp_path / "p")


@pytest.mark.parametrize("text", ["[", '{"cat": 0}', "[1, 2, 3]"])
def test_labels_that_are_no_list_of_names_are_refused(tmp_path: Path, text: str):
    doubler(tmp_path / "model" / "m.onnx")
    (tmp_path / "model" / "labels.json").write_text(text)
    with pytest.raises(PackageError, match=r"labels\.json"):
        import_model(tmp_path / "model", tmp_path / "p")


def test_a_partial_model_toml_wins_over_what_is_inferred(tmp_path: Path):
    doubler(tmp_path / "model" / "m.onnx")
    (tmp_path / "model" / "model.toml").write_text('description = "doubles"\n[batching]\nmax_batch_size = 7\n')
    manifest = import_model(tmp_path / "model", tmp_path / "p", config={"idempotent": False})
    assert manifest.description == "doubles" and manifest.batching.max_batch_size == 7
    assert not manifest.idempotent and manifest.runtime == "onnx"


def test_an_unknown_key_is_answered_with_the_nearest_known_one(tmp_path: Path):
    with pytest.raises(PackageError, match="description"):
        import_model(doubler(tmp_path / "m.onnx"), tmp_path / "p", config={"descripton": "x"})


def test_the_users_own_sample_is_kept_and_checked(tmp_path: Path):
    doubler(tmp_path / "model" / "m.onnx")
    (tmp_path / "model" / "sample.json").write_text('{"x": [[1, 2, 3]]}')
    import_model(tmp_path / "model", tmp_path / "p")
    sample = Package.open(tmp_path / "p").sample()
    assert sample is not None and sample["x"].tolist() == [[1, 2, 3]]
    (tmp_path / "model" / "sample.json").write_text('{"z": [[1, 2, 3]]}')
    with pytest.raises(PackageError, match='"z"'):
        import_model(tmp_path / "model", tmp_path / "q")


def test_a_sample_of_another_shape_is_refused(tmp_path: Path):
    doubler(tmp_path / "model" / "m.onnx")
    (tmp_path / "model" / "sample.json").write_text('{"x": [[1, 2]]}')
    with pytest.raises(PackageError, match=r"\[1, 2\]"):
        import_model(tmp_path / "model", tmp_path / "p")


def test_an_output_that_is_no_tensor_is_left_out_and_told(tmp_path: Path):
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1),
    ]
    parts = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)
    outputs = [value("y", TensorProto.FLOAT, ["n", 3]), parts]
    path = save_graph(tmp_path / "m.onnx", nodes, [value("x", TensorProto.FLOAT, ["n", 3])], outputs)
    lines: list[str] = []
    manifest = import_model(path, tmp_path / "p", report=lines.append)
    assert [s.name for s in manifest.signature.outputs] == ["y"]
    assert any("parts" in line for line in lines)


def test_a_damaged_onnx_file_is_named(tmp_path: Path):
    path = doubler(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(PackageError, match="onnx"):
        import_model(path, tmp_path / "p")


class Bomb:
    """Unpickling it would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["m.pkl", "m.joblib", "m.pickle", "m", "m.model"])
def test_a_pickle_is_refused_by_content_and_the_safe_formats_are_named(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "went-off")))
    with pytest.raises(UntrustedCode, match=r"skops.*ONNX") as caught:
        import_model(path, tmp_path / "p")
    assert "--trust-code" in caught.value.message
    assert not (tmp_path / "went-off").exists()


def test_a_trusted_pickle_of_a_model_is_imported(tmp_path: Path):
    linear = pytest.importorskip("sklearn.linear_model")
    model = linear.LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(model))
    manifest = import_model(tmp_path / "m.pkl", tmp_path / "p", trust_code=True)
    assert not manifest.trust_code
    predictor = load(Package.open(tmp_path / "p"), ReplicaSettings(threads=1))
    assert np.allclose(predictor.predict({"X": np.array([[3.0]], np.float32)})["prediction"], 6, atol=1e-4)


def test_a_skops_file_is_imported_without_trust(tmp_path: Path):
    skops = pytest.importorskip("skops.io")
    linear = pytest.importorskip("sklearn.linear_model")
    skops.dump(linear.LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0]), tmp_path / "m.skops")
    assert import_model(tmp_path / "m.skops", tmp_path / "p").signature.outputs[0].name == "prediction"


def test_an_unfitted_model_says_so(tmp_path: Path):
    linear = pytest.importorskip("sklearn.linear_model")
    with pytest.raises(PackageError, match="not fitted"):
        import_model(linear.LinearRegression(), tmp_path / "p")


PREDICT = """
SIGNATURE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
             "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}]}

def predict(x):
    return {"y": x + 1}
"""


def test_a_python_file_needs_trust_and_then_runs(tmp_path: Path):
    path = tmp_path / "plus.py"
    path.write_text(PREDICT)
    with pytest.raises(UntrustedCode, match="--trust-code"):
        import_model(path, tmp_path / "p")
    manifest = import_model(path, tmp_path / "q", trust_code=True)
    assert manifest.trust_code and manifest.runtime == "function"
    package = Package.open(tmp_path / "q")
    with pytest.raises(UntrustedCode):
        load(package, ReplicaSettings(threads=1))
    predictor = load(package, ReplicaSettings(threads=1), trust_code=True)
    assert predictor.predict({"x": np.array([1], np.float32)})["y"].tolist() == [2]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("def predict(x): return x", "SIGNATURE"),
        ("SIGNATURE = 1\ndef predict(x): return x", "SIGNATURE"),
        ("predicted = 1", "no function `predict`"),
        ("raise RuntimeError('boom')", "boom"),
        ("def predict(:", "SyntaxError"),
    ],
)
def test_a_python_file_that_is_no_model_says_what_is_missing(tmp_path: Path, text: str, hint: str):
    path = tmp_path / "m.py"
    path.write_text(text)
    with pytest.raises(PackageError, match=hint):
        import_model(path, tmp_path / "p", trust_code=True)


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("weights.pth", b"PK", "bare weights"),
        ("weights.safetensors", b"\0", "bare weights"),
        ("notes.md", b"# hello", "not a model"),
        ("config.json", json.dumps({"a": 1}).encode(), "not a model"),
        ("empty.bin", b"", "bare weights"),
        ("m.skops", b"PK\x03\x04 no", "skops"),
        ("m.ubj", b"\0\1\2", "xgboost"),
        ("m.txt", b"tree\nversion=v4\nbroken", "lightgbm"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_can(tmp_path: Path, name: str, content: bytes, hint: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PackageError, match=hint):
        import_model(path, tmp_path / "p")


def test_a_path_that_is_not_there_and_an_empty_folder_are_refused(tmp_path: Path):
    with pytest.raises(PackageError, match="no such file"):
        import_model(tmp_path / "none.onnx", tmp_path / "p")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackageError, match="found none"):
        import_model(tmp_path / "empty", tmp_path / "p")


def test_a_folder_with_two_models_asks_for_one(tmp_path: Path):
    for name in ("a.onnx", "b.onnx"):
        doubler(tmp_path / "model" / name)
    with pytest.raises(PackageError, match=r"a\.onnx, b\.onnx"):
        import_model(tmp_path / "model", tmp_path / "p")


def test_a_package_folder_is_taken_as_it_is(tmp_path: Path):
    import_model(doubler(tmp_path / "m.onnx"), tmp_path / "p")
    import_model(tmp_path / "p", tmp_path / "q")
    assert Package.open(tmp_path / "p").digest == Package.open(tmp_path / "q").digest


def test_configuration_given_with_a_package_folder_wins(tmp_path: Path):
    import_model(doubler(tmp_path / "m.onnx"), tmp_path / "p")
    seal(tmp_path / "p")
    manifest = import_model(tmp_path / "p", tmp_path / "q", config={"description": "new"})
    assert manifest.description == "new"
    assert Package.open(tmp_path / "q").manifest.description == "new"


def test_an_object_of_another_kind_is_refused(tmp_path: Path):
    with pytest.raises(PackageError, match="not a model foretell can read"):
        import_model(object(), tmp_path / "p")
