"""A package of runtime "llm" opens as a generator, or says which of its parts is missing or does not fit."""

import msgspec
import numpy as np
import pytest

from foretell.core.errors import ConfigError, InvalidInput, PackageError
from foretell.core.generation import Chat, Finished, GenerateRequest, Piece, Sampling, Stops
from foretell.core.settings import GenerationSettings, ReplicaSettings
from foretell.core.tensor import Signature, TensorSpec
from foretell.llm.families import read_config
from foretell.llm.graph import build
from foretell.llm.loading import open_generator, share_memory
from foretell.runtimes.loading import load_generator
from foretell.store.manifest import LlmOptions, Manifest, encode_manifest
from foretell.store.package import Package
from tests.llm import vocabularies

HIDDEN, FFN, HEADS, KV_HEADS, VOCAB = 64, 96, 4, 2, 608
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
OPTIONS = LlmOptions(context=64, vocab=VOCAB, layers=2, kv_heads=KV_HEADS, head_dim=HIDDEN // HEADS, bos=1, eos=(2,))
SETTINGS = ReplicaSettings(threads=1)
GREEDY = Sampling(temperature=0.0)


class RandomWeights:
    """The weights of a Llama that was never trained."""

    SHAPES = {  # noqa: RUF012
        "q_proj": (HIDDEN, HIDDEN),
        "k_proj": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
        "v_proj": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
        "o_proj": (HIDDEN, HIDDEN),
        "gate_proj": (FFN, HIDDEN),
        "up_proj": (FFN, HIDDEN),
        "down_proj": (HIDDEN, FFN),
        "embed_tokens": (VOCAB, HIDDEN),
    }

    def names(self):
        layers = [f"model.layers.{layer}." for layer in range(2)]
        parts = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
        norms = ["input_layernorm", "post_attention_layernorm"]
        inside = [f"{layer}{part}.weight" for layer in layers for part in (*parts, *norms)]
        return ["model.embed_tokens.weight", "model.norm.weight", *inside]

    def get(self, name):
        shape = self.SHAPES.get(name.split(".")[-2], (HIDDEN,))
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        seed = sum(map(ord, name))
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.3


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    build(read_config(CONFIG), RandomWeights(), folder, "fp32")
    return folder


@pytest.fixture
def folder(graph, tmp_path):
    for file in graph.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    vocabularies.save(vocabularies.byte_level(), tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    return tmp_path


def package(folder, options=OPTIONS):
    text = [TensorSpec(name, "BYTES", (1,)) for name in ("text_input", "text_output")]
    signature = Signature((text[0],), (text[1],))
    manifest = Manifest(runtime="llm", artifact="model.onnx", signature=signature, llm=options)
    (folder / "model.toml").write_text(encode_manifest(manifest))
    return Package.open(folder, verify=False)


def answers(generator, *requests):
    """The texts of requests that run together."""
    for number, request in enumerate(requests):
        generator.submit(number, request)
    texts, ends = [""] * len(requests), 0
    while ends < len(requests):
        for number, event in generator.step():
            assert not isinstance(event, Exception), event
            ends += isinstance(event, Finished)
            texts[number] += event.text if isinstance(event, Piece) else ""
    return texts


def test_a_package_answers_prompts_and_chats(folder):
    generator = load_generator(package(folder), SETTINGS)
    stops = Stops(max_tokens=12)
    chat = Chat([{"role": "user", "content": "Hi"}])
    one, two = answers(
        generator, GenerateRequest("Hello", GREEDY, stops), GenerateRequest(chat, Sampling(seed=1), stops)
    )
    assert one and two
    again = answers(generator, GenerateRequest(chat, Sampling(seed=1), stops))
    assert again == [two]
    generator.close()


def test_the_packages_defaults_are_used(folder):
    options = msgspec.structs.replace(OPTIONS, sampling=Sampling(temperature=0.0))
    generator = open_generator(package(folder, options), SETTINGS)
    stops = Stops(max_tokens=12)
    first, second = answers(
        generator, GenerateRequest("Hello", stops=stops), GenerateRequest("Hello", GREEDY, stops=stops)
    )
    assert first == second
    generator.close()


def test_without_a_template_only_chats_are_refused(folder):
    (folder / "chat_template.jinja").unlink()
    generator = open_generator(package(folder), SETTINGS)
    with pytest.raises(InvalidInput, match="no chat template"):
        generator.submit(0, GenerateRequest(Chat([{"role": "user", "content": "Hi"}])))
    assert answers(generator, GenerateRequest("Hello", GREEDY, Stops(max_tokens=2)))
    generator.close()


def test_a_missing_tokenizer_is_named(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(PackageError, match=r"has no tokenizer\.json"):
        open_generator(package(folder), SETTINGS)


def test_a_package_without_its_table_is_refused(folder):
    with pytest.raises(PackageError, match=r"no \[llm\] table"):
        open_generator(package(folder, None), SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab": 700}, "says that the vocabulary has 700 tokens, the graph has 608"),
        ({"eos": (2, 608)}, r"\[2, 608\]"),
    ],
)
def test_a_table_that_does_not_fit_the_graph_is_refused(folder, change, message):
    with pytest.raises(PackageError, match=message):
        open_generator(package(folder, msgspec.structs.replace(OPTIONS, **change)), SETTINGS)


def test_the_tokenizer_of_another_model_is_refused(folder):
    inner = vocabularies.byte_level()
    inner.add_tokens([f"word{number}" for number in range(100)])
    vocabularies.save(inner, folder)
    with pytest.raises(PackageError, match=r"tokenizer\.json has token ids up to \d+.*another model"):
        open_generator(package(folder), SETTINGS)


def test_a_device_that_is_not_here_is_refused(folder):
    with pytest.raises(ConfigError):
        open_generator(package(folder), ReplicaSettings(threads=1, device="tensorrt"))


def test_memory_is_shared_out_of_the_limit_or_of_what_there_is(monkeypatch):
    limited = share_memory(ReplicaSettings(memory_limit_mb=1000), GenerationSettings())
    assert limited.kv + limited.cache < 1000 * 2**20
    assert 0 < limited.cache < limited.kv
    assert share_memory(ReplicaSettings(), GenerationSettings()).kv > 0
    monkeypatch.setattr("foretell.llm.loading.usable_memory", lambda: 1000 * 2**20)
    of_four = share_memory(ReplicaSettings(count=4), GenerationSettings())
    assert 4 * (of_four.kv + of_four.cache) < 1000 * 2**20
    told = share_memory(ReplicaSettings(), GenerationSettings(kv_memory_mb=3, prefix_cache_mb=0))
    assert told == (3 * 2**20, 0)


def test_drafts_by_any_means_change_nothing_of_what_comes(folder):
    repeating = GenerateRequest("one two one two one two one", GREEDY, Stops(max_tokens=30))
    made = package(folder)
    told = (
        GenerationSettings(speculate=False, prefix_cache_mb=0),
        GenerationSettings(),
        GenerationSettings(draft=str(folder), slots=4),
    )
    texts = []
    for settings in told:
        generator = open_generator(made, SETTINGS, settings)
        texts += answers(generator, repeating)
        generator.close()
    assert texts == texts[:1] * 3


def test_a_draft_model_must_speak_the_same_tokens(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    vocabularies.save(vocabularies.sentencepiece(), other)
    package(other)
    with pytest.raises(PackageError, match="names a model with other tokens"):
        open_generator(package(folder), SETTINGS, GenerationSettings(draft=str(other)))
    with pytest.raises(PackageError):
        open_generator(package(folder), SETTINGS, GenerationSettings(draft=str(tmp_path_factory.mktemp("empty"))))
