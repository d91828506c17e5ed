"""What the engine says greedily with a real model in fp32, many at once in few slots, is what transformers says."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="transformers runs on torch")
transformers = pytest.importorskip("transformers", reason="transformers is the reference")
pytest.importorskip("onnx", reason="the graph is drawn with onnx")

from foretell.core.generation import Sampling  # noqa: E402
from foretell.llm.engine import Engine, EngineSettings  # noqa: E402
from foretell.llm.executors.onnx import OnnxSettings, open_onnx  # noqa: E402
from foretell.llm.families import read_config  # noqa: E402
from foretell.llm.gguf import GgufModel  # noqa: E402
from foretell.llm.graph import build  # noqa: E402
from foretell.llm.prefix_cache import RadixCache  # noqa: E402
from foretell.llm.sampling import Sampler  # noqa: E402
from foretell.llm.scheduler import Budget  # noqa: E402
from foretell.llm.sequence import Sequence  # noqa: E402
from tests.llm.smollm2 import gguf_file, tokenizer_folder  # noqa: E402

TOKENS, CONTEXT, SLOTS = 64, 128, 8
TIE = 1e-3
"""Logits nearer than this are a tie: two ways to add up the same numbers differ by some 1e-4 here."""
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at",
    "The three primary colours are",
    "Dear Sir or Madam,",
    "In 1969, the first",
    "A recipe for pancakes: take",
    "The quick brown fox",
    "To be or not to be,",
    "SELECT name FROM",
    "Der Himmel ist",
    "Photosynthesis is the process by which",
    "My favourite book is",
    "1, 1, 2, 3, 5, 8,",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "The weather today is",
    "import numpy as np\n\n",
    "She opened the door and",
    "The largest planet of the solar system",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def model() -> GgufModel:
    return GgufModel.open(gguf_file())


@pytest.fixture(scope="module")
def texts(folder, model) -> list[tuple[list[int], list[int]]]:
    """Each prompt's tokens, and what the engine says after them: read in chunks while others decode, in waves."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_folder(folder) / "tokenizer.json"))
    build(read_config(model.config(), CONTEXT), model, folder, "fp32")
    executor = open_onnx(folder / "model.onnx", OnnxSettings(SLOTS, CONTEXT, 2, spinning=False))
    engine = Engine(executor, EngineSettings(Budget(chunk=8)), RadixCache(1 << 24, executor.shape.token_bytes))
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    said: list[list[int]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):
        sampler = Sampler(Sampling(temperature=0.0), number, prompt)
        engine.add(Sequence(number, 0, prompt, sampler, (), TOKENS))
    while emitted := engine.step():
        for each in emitted:
            assert each.error is None
            said[each.sequence.number] += [chosen.token for chosen in each.tokens]
    engine.check()
    executor.close()
    assert [len(own) for own in said] == [TOKENS] * len(PROMPTS)
    return list(zip(prompts, said, strict=True))


@pytest.mark.slow
def test_greedy_tokens_are_those_of_transformers(texts, model):
    """Every token is transformers' likeliest after the same tokens, so by induction the whole texts are equal.

    That takes one pass over each text in place of one a token.
    """
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**model.config())).eval()
    state = {name: torch.tensor(model.get(name)) for name in model.names()}
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    reference.tie_weights()
    length = max(len(prompt) + len(said) for prompt, said in texts)
    batch = torch.zeros((len(texts), length), dtype=torch.int64)  # behind a text come zeros, which it does not see
    for row, (prompt, said) in enumerate(texts):
        batch[row, : len(prompt) + TOKENS] = torch.tensor(prompt + said)
    with torch.no_grad():
        hidden = reference.model(batch, use_cache=False).last_hidden_state
        for row, (prompt, said) in enumerate(texts):
            logits = reference.lm_head(hidden[row, len(prompt) - 1 : len(prompt) - 1 + TOKENS]).numpy()
            chosen = logits[np.arange(TOKENS), said]
            short = logits.max(axis=1) - chosen
            assert (short <= TIE).all(), (PROMPTS[row], int(short.argmax()), float(short.max()))
