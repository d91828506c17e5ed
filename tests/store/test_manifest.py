"""model.toml: what is written is read back, and what is wrong is named with the nearest right thing."""

import pytest

from foretell.core.errors import PackageError
from foretell.core.settings import BatchingSettings
from foretell.core.tensor import Signature, TensorSpec
from foretell.store.manifest import (
    CustomStep,
    Identity,
    ImageStep,
    LabelsStep,
    Lineage,
    Manifest,
    Parity,
    PoolStep,
    TextStep,
    Transform,
    decode_manifest,
    encode_manifest,
)

PLAIN = Manifest(
    "onnx",
    "model.onnx",
    Signature((TensorSpec("x", "FP32", (-1, 3, 224)),), (TensorSpec("y", "FP32", (-1,)),)),
)
FULL = Manifest(
    "function",
    "predict.py",
    Signature((TensorSpec("x", "FP32", (-1, 2), allow_nan=False),), (TensorSpec("y", "BYTES", ()),)),
    description='says "hello"\nand [\n    1,\n] more',
    trust_code=True,
    idempotent=False,
    package=Identity("m", "2026-01-01T00:00:00+00:00", "0.1.0"),
    transform=Transform(
        (TextStep(max_length=9), ImageStep("pixels", 2, 2, mean=(1.5, 2, -3)), CustomStep()),
        (PoolStep("h"), LabelsStep("y", top=3)),
    ),
    batching=BatchingSettings(max_batch_size=3, target_p99_ms=4.5),
    options={"outputs": {"y": "predict"}, "numbers": [1, 2.5, -3]},
    parity=Parity(8, 1e-4, 1e-7, "sklearn"),
    lineage=Lineage("a.pkl", "00", "skl2onnx", ("m@1",)),
)


@pytest.mark.parametrize("manifest", [PLAIN, FULL])
def test_what_is_written_is_read_back(manifest: Manifest):
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_shapes_stand_on_one_line_and_defaults_are_left_out():
    text = encode_manifest(PLAIN)
    assert "shape = [-1, 3, 224]" in text and "shape = [-1]" in text
    assert "batching" not in text and "idempotent" not in text


@pytest.mark.parametrize(
    ("extra", "place", "hint"),
    [
        ("runtine = 1", "runtine", '"runtime"'),
        ("[batching]\nmax_batchsize = 1", "max_batchsize", '"max_batch_size"'),
        ("[[transform.before]]\nkind = 'text'\nmax_len = 1", "max_len", '"max_length"'),
        ("[parity]\nrows = 1\ntolerence = 1", "tolerence", '"tolerance"'),
        ("[replicas]\ncuont = 1", "cuont", '"count"'),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(extra: str, place: str, hint: str):
    head, _, tail = encode_manifest(PLAIN).partition("[[")
    text = extra + "\n" + head + "[[" + tail if "[" not in extra else head + "[[" + tail + extra
    with pytest.raises(PackageError, match=place) as caught:
        decode_manifest(text)
    assert hint in caught.value.message


def test_an_unknown_key_of_an_input_is_answered_too():
    text = encode_manifest(PLAIN).replace('datatype = "FP32"', 'dtype = "FP32"', 1)
    with pytest.raises(PackageError, match="dtype") as caught:
        decode_manifest(text)
    assert '"datatype"' in caught.value.message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "runtime"),
        ("runtime = ", "TOML|value|line"),
        ("format = 99", "format 99"),
        ('runtime = "tensorflow"', "tensorflow"),
    ],
)
def test_what_is_no_manifest_says_why(text: str, hint: str):
    good = encode_manifest(PLAIN)
    if text.startswith("format"):
        text = good.replace("format = 1", text)
    elif "tensorflow" in text:
        text = good.replace('runtime = "onnx"', text)
    with pytest.raises(PackageError, match=hint):
        decode_manifest(text)
