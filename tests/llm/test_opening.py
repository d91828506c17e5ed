"""From a package to the executor that its settings and the machine ask for, and from there to the same answers."""

import importlib.util

import pytest

from foretell.core.errors import ConfigError, PackageError
from foretell.core.generation import Finished, GenerateRequest, Piece, Sampling, Stops
from foretell.core.settings import GenerationSettings, ReplicaSettings
from foretell.importers import import_model
from foretell.importers.draft import LlmChoices
from foretell.llm import opening
from foretell.llm.opening import choose, open_executor
from foretell.runtimes.loading import load_generator
from foretell.store.package import Package
from tests.llm import tiny_llama
from tests.llm.executor_world import as_builder_makes_it

torch = pytest.importorskip("torch", reason="the executor runs on torch")

from foretell.llm.executors.torch import TorchSettings, open_torch  # noqa: E402
from foretell.llm.graph_weights import read_graph  # noqa: E402

PROMPTS = ("Hello", "The quick brown fox", "one two one two one two one", "1, 1, 2, 3, 5, 8,")
CPU, ANY = ReplicaSettings(threads=1, device="cpu"), ReplicaSettings(threads=1)
TORCH = GenerationSettings(executor="torch", slots=4)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The same model at two precisions."""
    folder = tiny_llama.write_folder(tmp_path_factory.mktemp("tiny-llama"))
    made = {}
    for precision in ("fp32", "int4"):
        target = tmp_path_factory.mktemp(precision) / "package"
        import_model(folder, target, choices=LlmChoices(precision=precision, measure=False))
        made[precision] = Package.open(target)
    return made


def answers(package, settings=CPU, generation=GenerationSettings(slots=4)):
    """The greedy tokens after every prompt, all at once."""
    generator = load_generator(package, settings, generation)
    for number, prompt in enumerate(PROMPTS):
        request = GenerateRequest(prompt, Sampling(temperature=0.0), Stops(max_tokens=40, ignore_eos=True))
        generator.submit(number, request)
    tokens, ends = [[] for _ in PROMPTS], 0
    while ends < len(PROMPTS):
        for number, event in generator.step():
            assert not isinstance(event, Exception), event
            ends += isinstance(event, Finished)
            tokens[number] += event.tokens if isinstance(event, Piece) else []
    generator.close()
    return tokens


def test_torch_answers_a_package_with_the_tokens_of_onnx_runtime(packages):
    theirs = answers(packages["fp32"])
    assert [len(tokens) for tokens in theirs] == [40] * len(PROMPTS)
    assert answers(packages["fp32"], generation=TORCH) == theirs


def test_torch_answers_a_quantized_package(packages):
    assert [len(tokens) for tokens in answers(packages["int4"], generation=TORCH)] == [40] * len(PROMPTS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_a_cuda_device_is_used_by_itself_and_answers_alike(packages):
    opened = open_executor(packages["fp32"], packages["fp32"].manifest.llm, ANY, GenerationSettings(slots=4))
    assert opened.executor.device == "cuda"
    opened.executor.close()
    assert answers(packages["fp32"], ANY) == answers(packages["fp32"])
    assert [len(tokens) for tokens in answers(packages["int4"], ANY)] == [40] * len(PROMPTS)


def test_a_draft_model_runs_where_the_model_runs(packages):
    package = packages["fp32"]
    drafting = GenerationSettings(executor="torch", slots=4, draft=str(package.path))
    assert answers(package, generation=drafting) == answers(package, generation=TORCH)


@pytest.mark.parametrize(
    ("executor", "device", "devices", "torch_here", "expected"),
    [
        ("auto", "auto", 0, False, ("onnx", "cpu")),
        ("auto", "auto", 0, True, ("onnx", "cpu")),
        ("auto", "auto", 1, True, ("torch", "cuda")),
        ("auto", "auto", 1, False, ("onnx", "cpu")),
        ("auto", "cpu", 1, True, ("onnx", "cpu")),
        ("auto", "cuda", 0, True, ("torch", "cuda")),
        ("auto", "openvino", 1, True, ("onnx", "openvino")),
        ("torch", "cpu", 1, True, ("torch", "cpu")),
        ("torch", "auto", 0, True, ("torch", "auto")),
        ("onnx", "auto", 1, True, ("onnx", "cpu")),
        ("onnx", "cuda", 1, True, ("onnx", "cuda")),
    ],
)
def test_the_executor_follows_from_settings_and_machine(executor, device, devices, torch_here, expected):
    assert choose(executor, device, devices=devices, torch=torch_here)[:2] == expected


def test_without_torch_the_extra_is_named(packages, monkeypatch):
    with pytest.raises(ConfigError, match=r'device "cuda".*torch.*foretell\[torch\]'):
        choose("auto", "cuda", devices=1, torch=False)
    with pytest.raises(ConfigError, match=r'executor "torch".*foretell\[torch\]'):
        choose("torch", "auto", devices=0, torch=False)
    assert "foretell[torch]" in choose("auto", "auto", devices=1, torch=False).why
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"foretell\[torch\]"):
        load_generator(packages["fp32"], ReplicaSettings(device="cuda"))


def test_a_cuda_device_that_torch_cannot_use_is_left_alone_unless_it_was_asked_for(packages, monkeypatch, caplog):
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    monkeypatch.setattr(opening, "cuda_devices", lambda: 1)
    assert answers(packages["fp32"], ANY)
    assert "the installed torch cannot use it" in caplog.text
    with pytest.raises(ConfigError, match=r'device "cuda"'):
        load_generator(packages["fp32"], ReplicaSettings(device="cuda"))
    with pytest.raises(ConfigError, match='device "tensorrt"'):
        load_generator(packages["fp32"], ReplicaSettings(device="tensorrt"), TORCH)


def test_a_graph_of_another_builder_stays_with_onnx_runtime(packages, tmp_path, monkeypatch):
    package, target = packages["fp32"], tmp_path / "package"
    as_builder_makes_it(package.artifact, target)
    for file in package.path.iterdir():
        if not (target / file.name).exists() and file.suffix != ".data":
            (target / file.name).write_bytes(file.read_bytes())
    strange = Package.open(target, verify=False)
    monkeypatch.setattr(opening, "cuda_devices", lambda: 1)
    monkeypatch.setattr("foretell.accel.torch.sees_cuda", lambda: True)
    opened = open_executor(strange, strange.manifest.llm, ANY, GenerationSettings(slots=1))
    assert type(opened.executor).__name__ == "OnnxExecutor"
    opened.executor.close()
    with pytest.raises(PackageError, match="only graphs that foretell drew"):
        open_executor(strange, strange.manifest.llm, CPU, TORCH)


def test_settings_that_contradict_each_other_are_refused(packages):
    with pytest.raises(ConfigError, match=r'dtype "float16" is for executor "torch"'):
        load_generator(packages["fp32"], CPU, GenerationSettings(dtype="float16"))
    with pytest.raises(ConfigError, match=r"context is 129, and the model was made for 128 tokens"):
        load_generator(packages["fp32"], CPU, GenerationSettings(context=129))


@pytest.mark.parametrize("executor", ["onnx", "torch"])
def test_a_shorter_context_ends_answers_earlier(packages, executor):
    generator = load_generator(packages["fp32"], CPU, GenerationSettings(executor=executor, context=16))
    generator.submit(0, GenerateRequest([5] * 10, Sampling(temperature=0.0), Stops(ignore_eos=True)))
    events = [event for _ in range(20) for _, event in generator.step()]
    generator.close()
    assert [event.completion_tokens for event in events if isinstance(event, Finished)] == [6]


def test_memory_that_is_taken_whole_makes_fewer_slots_where_it_does_not_suffice(packages, caplog):
    spec, weights = read_graph(packages["fp32"].artifact)
    one = 65 * 2 * 2 * 2 * 16 * 2  # positions, keys and values, layers, heads, width, bytes

    def slots(kv_bytes, dtype="bfloat16"):
        executor = open_torch(spec, weights, TorchSettings(8, 64, 1, "cpu", dtype, kv_bytes))
        executor.close()
        return executor.shape.slots

    assert slots(8 * one) == 8
    assert not caplog.records
    assert slots(3 * one + 7) == 3
    assert "memory for 3 sequences of 64 tokens, not for 8" in caplog.text
    assert slots(one - 1, "float32") == 8  # taken as it is written
    with pytest.raises(ConfigError, match=r"one sequence of 64 tokens.*\[generation\] context lower"):
        slots(one - 1)


def test_half_precision_on_the_cpu_knows_its_memory(packages):
    told = GenerationSettings(executor="torch", dtype="bfloat16", slots=4, prefix_cache_mb=1)
    executor, memory, _ = open_executor(packages["fp32"], packages["fp32"].manifest.llm, CPU, told)
    shape = executor.shape
    assert memory == (4 * 128 * shape.token_bytes, 2**20)
    executor.close()
    assert [len(tokens) for tokens in answers(packages["fp32"], generation=told)] == [40] * len(PROMPTS)


def test_the_driver_is_asked_before_torch():
    assert opening.cuda_devices() == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert importlib.util.find_spec("torch") is not None
