"""`foretell add`, `show` and `pack` of a language model: what they say, and what they refuse."""

import json

import pytest

from foretell.store.package import Package
from tests.llm import tiny_llama


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    folder = tiny_llama.write_folder(tmp_path_factory.mktemp("tiny"))
    return tiny_llama.write_file(folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    return path


def test_add_says_the_size_and_what_the_precision_costs(cli, gguf_file, text):
    ran = cli("add", "tiny", gguf_file, "--precision", "int8", "--eval", text)
    assert ran.code == 0, ran.err
    assert "added tiny@1 (llm" in ran.out and "int8, 2 layers, 600 tokens, context 128" in ran.out
    assert "MB" in ran.err and "against fp32" in ran.err and "text.txt" in ran.err
    shown = cli("show", "tiny")
    assert "perplexity" in shown.out and "foretell chat" in shown.out
    assert json.loads(cli("show", "tiny", "--json").out)["manifest"]["llm"]["perplexity"]["text"] == "text.txt"


def test_the_same_model_at_another_precision_is_another_version(cli, gguf_file, text):
    for number, precision in enumerate(("int4", "int4", "fp32")):
        ran = cli("add", "tiny", gguf_file, "--precision", precision, "--eval", text, "--json")
        facts = json.loads(ran.out)
        assert facts["unchanged"] is (number == 1)
    assert json.loads(cli("show", "tiny", "--json").out)["versions"] == [1, 2]


def test_pack_makes_a_package_of_one_too(cli, gguf_file, tmp_path):
    ran = cli("pack", gguf_file, tmp_path / "p", "--precision", "fp32")
    assert ran.code == 0, ran.err
    assert Package.open(tmp_path / "p").manifest.llm.precision == "fp32"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tiny.gguf", "--precision", "int5"], 'Did you mean "int8" or "int4"'),
        (["tiny.gguf", "--precision", "int8", "--block-size", "32"], "--block-size 32"),
        (["tiny.gguf", "--eval", "gone.txt"], "gone.txt"),
        (["scale.onnx", "--precision", "int4"], "is no language model"),
        (["hf://one/two/three"], "hf://owner/name"),
        (["cut.gguf"], "not a readable GGUF file"),
    ],
)
def test_add_refuses_what_makes_no_sense(cli, scale, gguf_file, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(gguf_file.read_bytes())
    (tmp_path / "cut.gguf").write_bytes(gguf_file.read_bytes()[:3000])
    ran = cli("add", "other", *arguments)
    assert ran.code != 0 and says in ran.err
    assert "other" not in cli("list").out
