"""Pooling, unit length, labels: each against plain numpy."""

import numpy as np
import pytest
from zoo import bytes_column, embedder, labelled_kind, onnx_kind, signature, spec, write_package

from foretell.core.errors import PackageError
from foretell.core.settings import ReplicaSettings
from foretell.runtimes import load
from foretell.runtimes.labels import softmax, top_indices
from foretell.runtimes.vectors import normalize, pool

RANDOM = np.random.default_rng(3)
VECTORS = RANDOM.normal(size=(4, 6, 5)).astype(np.float32)
MASK = np.array([[1] * n + [0] * (6 - n) for n in (6, 3, 1, 4)])
EXPECTED = {
    "mean": lambda kept: kept.mean(axis=0),
    "max": lambda kept: kept.max(axis=0),
    "cls": lambda kept: kept[0],
}


@pytest.mark.parametrize("method", EXPECTED)
def test_pooling_sees_only_what_the_mask_keeps(method):
    pooled = pool(VECTORS, MASK, method)
    assert pooled.dtype == np.float32
    for row, mask, got in zip(VECTORS, MASK, pooled, strict=True):
        np.testing.assert_allclose(got, EXPECTED[method](row[mask == 1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", EXPECTED)
def test_pooling_of_rows_padded_on_the_left(method):
    turned, mask = VECTORS[:, ::-1], MASK[:, ::-1]
    for row, kept, got in zip(turned, mask, pool(turned, mask, method), strict=True):
        np.testing.assert_allclose(got, EXPECTED[method](row[kept == 1]), rtol=1e-5, atol=1e-6)


def test_the_mean_of_no_tokens_is_zero_not_nan():
    assert not pool(VECTORS[:1], np.zeros((1, 6), int), "mean").any()


def test_normalised_rows_have_length_one_and_zeros_stay():
    rows = np.concatenate([VECTORS[:, 0], np.zeros((1, 5), np.float32)])
    lengths = np.linalg.norm(normalize(rows), axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 1, 0], atol=1e-6)
    assert normalize(rows).dtype == np.float32


def test_softmax_agrees_with_its_definition_and_does_not_overflow():
    scores = RANDOM.normal(size=(5, 7)).astype(np.float32)
    np.testing.assert_allclose(softmax(scores), np.exp(scores) / np.exp(scores).sum(axis=1)[:, None], rtol=1e-5)
    assert np.isfinite(softmax(scores * 1e6)).all()


@pytest.mark.parametrize("top", [1, 3, 7])
def test_the_best_come_first_and_equal_ones_in_their_order(top):
    shares = np.round(RANDOM.random((20, 7)), 1)
    for row, best in zip(shares, top_indices(shares, top), strict=True):
        assert best.tolist() == sorted(range(7), key=lambda c: (-row[c], c))[:top]


def test_labels_are_the_names_of_the_most_probable_classes(tmp_path):
    kind = labelled_kind(onnx_kind, "onnx")(tmp_path)
    (tmp_path / "plain").mkdir()
    plain = load(onnx_kind(tmp_path / "plain").package, ReplicaSettings(threads=1)).predict(kind.inputs)
    named = load(kind.package, ReplicaSettings(threads=1)).predict(kind.inputs)
    names = np.array([b"setosa", b"versicolor", b"virginica"], dtype=object)
    np.testing.assert_array_equal(named["label"][:, 0], names[plain["label"]])
    np.testing.assert_allclose(named["probability"][:, 0], plain["probabilities"].max(axis=1))


@pytest.mark.parametrize(
    ("labels", "top", "message"),
    [
        ('["a", "b"]', 1, "names 2 labels, the model has probabilities"),
        ('["a", "b", "c"]', 4, "top 4 of 3 labels"),
        ('{"a": 1}', 1, "must be a JSON list of strings"),
        ("\xff", 1, "must be a JSON list of strings"),
    ],
)
def test_a_labels_file_that_does_not_fit_is_a_package_error(tmp_path, labels, top, message):
    inner = onnx_kind(tmp_path)
    (tmp_path / "labels.json").write_bytes(labels.encode("latin-1"))
    sig = signature([spec("X", "FP32", -1, 4)], [spec("label", "BYTES", -1)])
    step = {"kind": "labels", "input": "probabilities", "top": top}
    package = write_package(tmp_path, "onnx", inner.package.manifest.artifact, sig, transform={"after": [step]})
    with pytest.raises(PackageError, match=message):
        load(package, ReplicaSettings(threads=1))


CUSTOM = """
import numpy as np

def before(inputs):
    ids = np.array([[len(word) % 10 for word in text.split()] for text in inputs["text"]])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

def after(outputs, inputs):
    return {"words": [len(text.split()) for text in inputs["text"]], "first": outputs["hidden"][:, 0]}
"""


def test_a_package_s_own_steps_see_what_was_sent_and_what_the_model_made(tmp_path):
    (tmp_path / "model.onnx").write_bytes(embedder().SerializeToString())
    (tmp_path / "transform.py").write_text(CUSTOM)
    sig = signature([spec("text", "BYTES", -1)], [spec("words", "INT64", -1), spec("first", "FP32", -1, 5)])
    transform = {"before": [{"kind": "custom"}], "after": [{"kind": "custom"}]}
    package = write_package(tmp_path, "onnx", "model.onnx", sig, transform=transform, trust_code=True)
    outputs = load(package, ReplicaSettings(threads=1), trust_code=True).predict(
        {"text": bytes_column([b"the cat", b"a dog"])}
    )
    assert outputs["words"].tolist() == [2, 2]
    assert outputs["first"].shape == (2, 5)
