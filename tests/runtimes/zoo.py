"""One package of every kind, made on the spot: what the conformance suite and the other tests load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm
import msgspec
import numpy as np
import onnx
import pytest
import skops.io
import xgboost
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from foretell.core.tensor import Signature, Tensors, TensorSpec
from foretell.store.manifest import Manifest, encode_manifest
from foretell.store.package import Package

ROWS = 12
X, Y = load_iris(return_X_y=True)
TABLE = X[::13][:ROWS].astype(np.float32)


class Kind(NamedTuple):
    """A package, rows that it answers, and how far answers may move between batch shapes."""

    package: Package
    inputs: Tensors
    tolerance: float = 1e-5


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def signature(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Signature:
    return Signature(tuple(inputs), tuple(outputs))


def write_package(folder: Path, runtime: str, artifact: str, sig: Signature, **more: Any) -> Package:
    """Write model.toml beside the files that are there already and open the package."""
    document = {"runtime": runtime, "artifact": artifact, "signature": sig, **more}
    manifest = msgspec.convert(msgspec.to_builtins(document), Manifest)
    (folder / "model.toml").write_text(encode_manifest(manifest))
    return Package.open(folder)


IRIS = signature([spec("X", "FP32", -1, 4)], [spec("label", "INT64", -1), spec("probabilities", "FP32", -1, 3)])


def bytes_column(items: list[bytes]) -> np.ndarray:
    column = np.empty(len(items), dtype=object)
    column[:] = items
    return column


def onnx_kind(folder: Path) -> Kind:
    model = to_onnx(LogisticRegression(max_iter=500).fit(X, Y), X[:1].astype(np.float32), options={"zipmap": False})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return Kind(write_package(folder, "onnx", "model.onnx", IRIS), {"X": TABLE})


def sklearn_kind(folder: Path) -> Kind:
    skops.io.dump(LogisticRegression(max_iter=500).fit(X, Y), folder / "model.skops")
    return Kind(write_package(folder, "sklearn", "model.skops", IRIS), {"X": TABLE})


def xgboost_kind(folder: Path) -> Kind:
    fitted = xgboost.XGBClassifier(n_estimators=5, max_depth=3).fit(X, Y)
    fitted.get_booster().save_model(folder / "model.json")
    return Kind(write_package(folder, "xgboost", "model.json", IRIS), {"X": TABLE})


def lightgbm_kind(folder: Path) -> Kind:
    fitted = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(X, Y)
    fitted.booster_.save_model(folder / "model.txt")
    return Kind(write_package(folder, "lightgbm", "model.txt", IRIS), {"X": TABLE})


NAMES = {"inputs": ["X"], "outputs": ["label", "probabilities"]}
"""torch.export writes input names in lower case, so the package says what they are called."""


def torch_kind(folder: Path) -> Kind:
    # torch is optional; without it what needs it skips, and says so.
    save_classifier = pytest.importorskip("torch_programs", reason="torch is not installed").save_classifier
    save_classifier(folder / "model.pt2")
    return Kind(write_package(folder, "torch", "model.pt2", IRIS, trust_code=True, options=NAMES), {"X": TABLE})


FUNCTION = """
import numpy as np

def predict(X):
    shares = np.abs(X[:, :3]) / np.abs(X[:, :3]).sum(axis=1, keepdims=True)
    return {"label": shares.argmax(axis=1), "probabilities": shares}
"""


def function_kind(folder: Path) -> Kind:
    (folder / "model.py").write_text(FUNCTION)
    return Kind(write_package(folder, "function", "model.py", IRIS, trust_code=True), {"X": TABLE})


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a", "mat", "dog", "ran", "fast", "far"]
TEXTS = [
    b"the cat",
    b"the dog ran far on a mat",
    b"cat",
    b"a dog sat on the mat the dog ran fast",
    b"",
    b"dog ran",
]


def word_tokenizer(max_length: int = 4) -> Tokenizer:
    """Words as tokens; its own file truncates at and pads to `max_length`, as published tokenizers often do."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(length=max_length, pad_id=0, pad_token="[PAD]")
    return tokenizer


def embedder(width: int = 5) -> onnx.ModelProto:
    """input_ids and attention_mask → hidden [n, t, width]: a table lookup scaled by the mask plus one."""
    table = np.random.default_rng(1).normal(size=(len(WORDS), width)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axis"], ["column"]),
        helper.make_node("Add", ["rows", "column"], ["hidden"]),
    ]
    ids = [helper.make_tensor_value_info(n, TensorProto.INT64, ["n", "t"]) for n in ("input_ids", "attention_mask")]
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["n", "t", width])
    constants = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([2]), "axis")]
    return save_ready(helper.make_graph(nodes, "embedder", ids, [hidden], constants))


def save_ready(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def text_kind(folder: Path) -> Kind:
    onnx.save(embedder(), folder / "model.onnx")
    word_tokenizer().save(str(folder / "tokenizer.json"))
    sig = signature([spec("text", "BYTES", -1)], [spec("embedding", "FP32", -1, 5)])
    transform = {
        "before": [{"kind": "text", "max_length": 8}],
        "after": [{"kind": "pool", "input": "hidden"}, {"kind": "normalize", "output": "embedding"}],
    }
    package = write_package(folder, "onnx", "model.onnx", sig, transform=transform)
    return Kind(package, {"text": bytes_column(TEXTS * 2)})


def labelled_kind(make: Callable[[Path], Kind], runtime: str) -> Callable[[Path], Kind]:
    """The tabular package of `runtime` with its probabilities turned into names."""

    def kind(folder: Path) -> Kind:
        inner = make(folder)
        (folder / "labels.json").write_text('["setosa", "versicolor", "virginica"]')
        sig = signature([spec("X", "FP32", -1, 4)], [spec("label", "BYTES", -1, 2), spec("probability", "FP32", -1, 2)])
        step = {"kind": "labels", "input": "probabilities", "softmax": False, "top": 2}
        tells_itself = {"onnx": {}, "torch": NAMES}
        package = write_package(
            folder,
            runtime,
            inner.package.manifest.artifact,
            sig,
            transform={"after": [step]},
            options=tells_itself.get(runtime, {"signature": IRIS}),
            trust_code=inner.package.manifest.trust_code,
        )
        return Kind(package, inner.inputs)

    return kind


_PLAIN: dict[str, Callable[[Path], Kind]] = {
    "onnx": onnx_kind,
    "sklearn": sklearn_kind,
    "xgboost": xgboost_kind,
    "lightgbm": lightgbm_kind,
    "torch": torch_kind,
    "function": function_kind,
}

KINDS: dict[str, Callable[[Path], Kind]] = {
    **_PLAIN,
    **{f"{name} with labels": labelled_kind(make, name) for name, make in _PLAIN.items()},
    "onnx with text": text_kind,
}
