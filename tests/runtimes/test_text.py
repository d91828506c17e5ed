"""Text → token ids → vectors, against the tokenizer, onnxruntime and numpy used by hand."""

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer
from zoo import TEXTS, bytes_column, signature, spec, text_kind, write_package

from examples import demo_models
from foretell.core.errors import InvalidInput, PackageError
from foretell.core.settings import ReplicaSettings
from foretell.core.text import decode_text, encode_text
from foretell.runtimes import load

ONE_THREAD = ReplicaSettings(threads=1)


@pytest.fixture
def package(tmp_path):
    return text_kind(tmp_path).package


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    try:
        folder = demo_models.minilm(tmp_path_factory.mktemp("demo"))
    except demo_models.ModelMissing as error:
        pytest.skip(str(error))
    sig = signature([spec("text", "BYTES", -1)], [spec("embedding", "FP32", -1, 384)])
    transform = {
        "before": [{"kind": "text"}],
        "after": [{"kind": "pool", "input": "last_hidden_state"}, {"kind": "normalize", "output": "embedding"}],
    }
    return write_package(folder, "onnx", "model.onnx", sig, transform=transform)


def embed_by_hand(package, text, max_length, hidden, types=False):
    """One text alone: no padding, no batch, plain numpy."""
    tokenizer = Tokenizer.from_file(str(package.path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    ids = np.array([tokenizer.encode(text).ids])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if types:
        feed["token_type_ids"] = np.zeros_like(ids)
    session = onnxruntime.InferenceSession(str(package.path / "model.onnx"))
    vectors = session.run([hidden], feed)[0][0]
    mean = vectors.sum(axis=0) / len(vectors)
    return mean / np.linalg.norm(mean)


def test_each_text_gets_the_vector_that_it_gets_alone(package):
    predictor = load(package, ONE_THREAD)
    vectors = predictor.predict({"text": bytes_column(TEXTS)})["embedding"]
    for text, vector in zip(TEXTS, vectors, strict=True):
        expected = embed_by_hand(package, text.decode(), 8, "hidden")
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_minilm_agrees_with_onnxruntime_and_tokenizers_used_by_hand(minilm):
    texts = ["A cat sat on the mat.", "Quarterly revenue rose by nine percent, the company said.", "Hi"]
    vectors = load(minilm, ONE_THREAD).predict({"text": encode_text(np.array(texts))})["embedding"]
    for text, vector in zip(texts, vectors, strict=True):
        alone = embed_by_hand(minilm, text, 256, "last_hidden_state", types=True)
        # The int8 model scales activations over the whole batch, so neighbours move a row a little.
        assert vector @ alone > 0.995
    one = load(minilm, ONE_THREAD).predict({"text": encode_text(np.array(texts[1:2]))})["embedding"][0]
    np.testing.assert_allclose(one, embed_by_hand(minilm, texts[1], 256, "last_hidden_state", types=True), atol=1e-6)


def test_the_package_s_max_length_rules_not_the_tokenizer_s(package):
    long = b" ".join([b"cat"] * 20)
    vectors = load(package, ONE_THREAD).predict({"text": bytes_column([long])})["embedding"]
    np.testing.assert_allclose(vectors[0], embed_by_hand(package, long.decode(), 8, "hidden"), atol=1e-6)


def test_text_that_is_not_utf8_names_the_element_and_the_byte(package):
    with pytest.raises(InvalidInput, match=r'input "text", element 1: not UTF-8 text \(byte 4 is 0xff\)'):
        load(package, ONE_THREAD).predict({"text": bytes_column([b"fine", b"the \xff"])})


def test_a_damaged_tokenizer_is_a_package_error(package):
    (package.path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(PackageError, match=r"tokenizer\.json is not a tokenizer"):
        load(package, ONE_THREAD)


def test_a_missing_tokenizer_is_a_package_error(package):
    (package.path / "tokenizer.json").unlink()
    with pytest.raises(PackageError, match=r'holds no file "tokenizer\.json"'):
        load(package, ONE_THREAD)


def test_pooling_under_an_unknown_name_lists_the_known_ones(package):
    transform = {"before": [{"kind": "text"}], "after": [{"kind": "pool", "input": "hiden"}]}
    wrong = write_package(package.path, "onnx", "model.onnx", package.manifest.signature, transform=transform)
    with pytest.raises(PackageError, match=r'needs the tensor "hiden".*Did you mean "hidden"'):
        load(wrong, ONE_THREAD)


def test_text_survives_the_way_to_bytes_and_back():
    array = np.array([["é", "a"], ["", "日本"]], dtype=object)
    np.testing.assert_array_equal(decode_text(encode_text(array), "x"), array)
