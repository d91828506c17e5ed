"""Language models become packages, the same one from a GGUF file and a Hugging Face folder; errors say what to do."""

import json
import shutil

import msgspec
import numpy as np
import onnx
import pytest

import foretell
from foretell.core.errors import ConfigError, ForetellError, PackageError, Unsupported
from foretell.core.generation import Chat, Sampling
from foretell.importers import import_model
from foretell.importers.draft import LlmChoices
from foretell.llm.perplexity import perplexity, windows
from foretell.llm.template import ChatTemplate
from foretell.llm.text import Tokenizer
from foretell.store.manifest import LlmOptions
from foretell.store.package import Package, seal
from tests.llm import tiny_llama, vocabularies
from tests.llm.tiny_llama import BOS, EOS, TOKENIZER, TURN

transformers = pytest.importorskip("transformers", reason="transformers makes the checkpoints")
torch = pytest.importorskip("torch", reason="transformers runs on torch")

EVALUATION = "The quick brown fox jumps over the lazy dog. " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama.write_folder(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def gguf_file(folder, tmp_path_factory):
    return tiny_llama.write_file(folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(EVALUATION)
    return path


def choices(precision, text, **others):
    return LlmChoices(precision=precision, evaluation=text, **others)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_the_same_weights_make_the_same_package_from_both_kinds_of_files(precision, folder, gguf_file, text, tmp_path):
    digests = set()
    for number, source in enumerate((folder, gguf_file)):
        manifest = import_model(source, tmp_path / str(number), choices=choices(precision, text))
        digests.add(seal(tmp_path / str(number)).digest)
        assert manifest.runtime == "llm" and manifest.llm is not None
    assert len(digests) == 1


def test_a_package_holds_all_that_serving_needs(gguf_file, text, tmp_path):
    lines, steps = [], []
    manifest = import_model(
        gguf_file,
        tmp_path / "p",
        choices=choices("int4", text, block_size=16),
        report=lines.append,
        progress=lambda doing, share: steps.append((doing, share)),
    )
    package = Package.open(tmp_path / "p")
    options = package.manifest.llm
    measured = options.perplexity
    assert msgspec.structs.replace(options, perplexity=None) == LlmOptions(
        128, 600, 2, 2, 16, BOS, (EOS, TURN), "int4", 16
    )
    assert measured.text == "text.txt" and measured.tokens > 100
    assert measured.package == pytest.approx(measured.fp32, rel=0.05)
    assert manifest.lineage.source == "tiny.gguf" and len(manifest.lineage.source_sha256) == 64
    assert [spec.name for spec in manifest.signature.inputs + manifest.signature.outputs] == [
        "text_input",
        "text_output",
    ]
    assert package.sample()["text_input"].shape == (1,)
    assert Tokenizer.load(package.path).encode("The fox") == TOKENIZER.encode("The fox").ids
    assert ChatTemplate.load(package.path).render(Chat([{"role": "user", "content": "x"}])) == (
        "<|im_start|>user x<|im_end|>"
    )
    assert any("perplexity" in line and "%" in line for line in lines)
    assert any("MB" in line for line in lines)
    assert ("measuring the package", 1.0) in steps and ("writing fp32 weights", 1.0) in steps


def test_the_measured_perplexity_is_transformers_own(folder, text, tmp_path):
    import_model(folder, tmp_path / "p", choices=choices("fp32", text))
    tokens = windows(TOKENIZER.encode(EVALUATION).ids, 128)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        losses = [float(model(torch.tensor([w]), labels=torch.tensor([w])).loss) for w in tokens]
    assert perplexity(tmp_path / "p" / "model.onnx", tokens, 1) == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)


def test_recommended_sampling_is_kept(folder, text, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    given = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "eos_token_id": [EOS, 3]}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(given))
    manifest = import_model(tmp_path / "m", tmp_path / "p", choices=choices("fp32", text))
    assert manifest.llm.sampling == Sampling(temperature=0.7, top_p=0.9, top_k=40)
    assert manifest.llm.eos == (EOS, 3, TURN)
    given["do_sample"] = False
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(given))
    manifest = import_model(tmp_path / "m", tmp_path / "q", choices=choices("fp32", text))
    assert manifest.llm.sampling == Sampling()


def test_own_keys_win_over_what_was_inferred(gguf_file, tmp_path):
    config = {"description": "tiny", "llm": {"context": 5}}
    with pytest.raises(PackageError, match="vocab"):  # the table is taken whole
        import_model(gguf_file, tmp_path / "p", config=config, choices=LlmChoices(precision="fp32"))


def test_a_folder_may_bring_its_own_tokenizer_and_template_for_a_gguf_file(gguf_file, tmp_path):
    source = tmp_path / "m"
    vocabularies.save(vocabularies.byte_level(400), source)
    shutil.copy(gguf_file, source)
    (source / "chat_template.jinja").write_text("own")
    import_model(source, tmp_path / "p", choices=LlmChoices(precision="fp32"))
    assert Tokenizer.load(tmp_path / "p").vocab_size == 400
    assert (tmp_path / "p" / "chat_template.jinja").read_text() == "own"


def test_without_measuring_no_second_graph_is_built(gguf_file, tmp_path):
    steps = []
    manifest = import_model(
        gguf_file,
        tmp_path / "p",
        choices=LlmChoices(precision="int8", measure=False),
        progress=lambda doing, share: steps.append(doing),
    )
    assert manifest.llm.perplexity is None and set(steps) == {"writing int8 weights"}


def test_a_model_too_large_for_fp32_is_not_measured(gguf_file, tmp_path, monkeypatch):
    from foretell.importers import llm

    monkeypatch.setattr(llm.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    lines = []
    manifest = import_model(gguf_file, tmp_path / "p", choices=LlmChoices(precision="int8"), report=lines.append)
    assert manifest.llm.perplexity is None
    assert any(line.startswith("no perplexity") for line in lines)


def test_several_chat_templates_give_the_default_one(folder, tmp_path):
    source = tmp_path / "m"
    shutil.copytree(folder, source)
    (source / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    lines = []
    import_model(source, tmp_path / "p", choices=LlmChoices(precision="fp32"), report=lines.append)
    assert (tmp_path / "p" / "chat_template.jinja").read_text() == "one"
    assert any("tool_use" in line for line in lines)


FAULTS = {
    "no tokenizer": (lambda at: (at / "tokenizer.json").unlink(), PackageError, r"no tokenizer\.json.*save_pretrained"),
    "no JSON": (lambda at: (at / "config.json").write_text("{"), PackageError, "no valid JSON"),
    "no object": (lambda at: (at / "config.json").write_text("[]"), PackageError, "should hold an object"),
    "another kind": (
        lambda at: (at / "config.json").write_text('{"model_type": "bert"}'),
        Unsupported,
        r'"bert".*llama.*onnxruntime-genai',
    ),
    "a bad template": (
        lambda at: (at / "chat_template.jinja").write_text("{% if %}"),
        PackageError,
        r"chat_template\.jinja, line 1",
    ),
    "a bad tokenizer": (lambda at: (at / "tokenizer.json").write_text("{}"), PackageError, "is not a tokenizer"),
    "cut weights": (
        lambda at: (at / "model.safetensors").write_bytes((at / "model.safetensors").read_bytes()[:5000]),
        PackageError,
        "cut short or corrupt",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_folder_that_cannot_be_read_says_why(name, folder, tmp_path):
    change, error, reason = FAULTS[name]
    shutil.copytree(folder, tmp_path / "m")
    change(tmp_path / "m")
    with pytest.raises(error, match=reason):
        import_model(tmp_path / "m", tmp_path / "p", choices=LlmChoices(precision="int8", measure=False))


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        (LlmChoices(precision="int5"), ConfigError, '"int5".*Did you mean'),
        (LlmChoices(block_size=7), ConfigError, "block size 7"),
        (LlmChoices(precision="int8", block_size=64), ConfigError, "--block-size 64"),
        (LlmChoices(precision="int8"), PackageError, "--eval .*nowhere"),
        (LlmChoices(precision="int8"), ForetellError, "evaluation text has"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(given, error, reason, gguf_file, tmp_path):
    if "nowhere" in reason:
        given = msgspec.structs.replace(given, evaluation=tmp_path / "nowhere.txt")
    if "text has" in reason:
        (tmp_path / "short.txt").write_text("too short")
        given = msgspec.structs.replace(given, evaluation=tmp_path / "short.txt")
    with pytest.raises(error, match=reason):
        import_model(gguf_file, tmp_path / "p", choices=given)


def test_choices_of_language_models_are_refused_for_others(tmp_path):
    (tmp_path / "score.py").write_text("def predict(inputs): return inputs\n")
    with pytest.raises(ConfigError, match="no language model"):
        import_model(tmp_path / "score.py", tmp_path / "p", choices=LlmChoices(precision="int4"), trust_code=True)


def test_a_name_of_the_hub_that_cannot_be_reached_says_so(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PackageError, match=r"hf://nobody/nothing.*(cannot be reached|could not be downloaded)"):
        import_model("hf://nobody/nothing", tmp_path / "p")
    with pytest.raises(PackageError, match="hf://owner/name"):
        import_model("hf://no such/name/at/all", tmp_path / "q")


def test_a_name_of_the_hub_is_imported_as_the_folder_it_stands_for(folder, tmp_path, monkeypatch):
    from foretell.importers import huggingface

    monkeypatch.setattr(huggingface, "snapshot_download", lambda name, allow_patterns: str(folder))
    manifest = import_model("hf://tiny/llama", tmp_path / "p", choices=LlmChoices(precision="fp32"))
    assert manifest.lineage.source == "hf://tiny/llama"


@pytest.fixture
def builder_folder(folder, tmp_path):
    """What onnxruntime-genai's builder leaves: a graph that gives all logits, and its configuration."""
    import_model(folder, tmp_path / "graph", choices=LlmChoices(precision="int4", measure=False))
    built = tmp_path / "built"
    built.mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(tmp_path / "graph" / name, built)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folder / name, built)
    genai = {
        "model": {
            "context_length": 128,
            "vocab_size": 600,
            "bos_token_id": BOS,
            "eos_token_id": [EOS, 3],
            "decoder": {
                "filename": "model.onnx",
                "head_size": 16,
                "num_hidden_layers": 2,
                "num_key_value_heads": 2,
            },
        },
        "search": {"do_sample": False, "temperature": 1.0},
    }
    (built / "genai_config.json").write_text(json.dumps(genai))
    return built


def score_every_position(path):
    """Make our graph into one like the builder's: no logits_rows, logits [batch, tokens, vocab], open sizes."""
    model = onnx.load(path, load_external_data=False)
    graph, node = model.graph, onnx.helper.make_node
    kept = [value for value in graph.input if value.name != "logits_rows"]
    del graph.input[:]
    graph.input.extend(kept)
    for number in (0, 1):
        graph.initializer.append(onnx.helper.make_tensor(f"int_{number}", onnx.TensorProto.INT64, [], [number]))
    graph.initializer.append(onnx.helper.make_tensor("vocab", onnx.TensorProto.INT64, [1], [600]))
    for each in graph.node:
        each.output[:] = ["flat_logits" if name == "logits" else name for name in each.output]
    first = [node("Size", ["input_ids"], ["size"]), node("Range", ["int_0", "size", "int_1"], ["logits_rows"])]
    last = [
        node("Shape", ["input_ids"], ["given"]),
        node("Concat", ["given", "vocab"], ["shape"], axis=0),
        node("Reshape", ["flat_logits", "shape"], ["logits"]),
    ]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.output:
        if value.name == "logits":
            value.CopyFrom(onnx.helper.make_tensor_value_info("logits", 1, ["batch", "tokens", 600]))
    for value in (*graph.input, *graph.output):
        if value.name.startswith(("past", "present")):
            value.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    onnx.save(model, path)


def test_a_builder_s_folder_is_taken_as_it_is(builder_folder, tmp_path):
    score_every_position(builder_folder / "model.onnx")
    manifest = import_model(builder_folder, tmp_path / "p")
    assert manifest.llm == LlmOptions(128, 600, 2, 2, 16, BOS, (EOS, 3, TURN), "int4", 32)
    with foretell.load(tmp_path / "p") as model:
        assert model.generate("The fox", max_tokens=3, temperature=0)
    tokens = windows(TOKENIZER.encode(EVALUATION).ids, 128)
    expected = perplexity(tmp_path / "graph" / "model.onnx", tokens, 1)
    assert perplexity(tmp_path / "p" / "model.onnx", tokens, 1) == pytest.approx(expected, rel=1e-4)


def test_a_builder_s_folder_that_we_cannot_run_says_why(builder_folder, tmp_path):
    with pytest.raises(Unsupported, match="logits_rows"):  # stands for inputs that other options of the builder make
        import_model(builder_folder, tmp_path / "a")
    with pytest.raises(PackageError, match="give --precision to it"):
        import_model(builder_folder, tmp_path / "b", choices=LlmChoices(precision="int8"))
    genai = json.loads((builder_folder / "genai_config.json").read_text())
    (builder_folder / "model.onnx").rename(builder_folder / "other.onnx")
    with pytest.raises(PackageError, match=r"model\.onnx is not in the folder"):
        import_model(builder_folder, tmp_path / "c")
    score_every_position(builder_folder / "other.onnx")
    genai["model"]["decoder"] |= {"filename": "other.onnx", "head_size": None}
    (builder_folder / "genai_config.json").write_text(json.dumps(genai))
    with pytest.raises(PackageError, match='"head_size" should be a positive number'):
        import_model(builder_folder, tmp_path / "d")
