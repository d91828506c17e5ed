"""The joined kernels of a decoding step say what the decoder's layers say: every family, filled and idle slots.

On a machine without a GPU they run in Triton's interpreter, which knows float32 only.
"""

import json
import os

import pytest

torch = pytest.importorskip("torch", reason="the step runs on torch")
pytest.importorskip("transformers", reason="transformers makes the tiny checkpoints")

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
triton = pytest.importorskip("triton", reason="the kernels are written in triton")

from foretell.llm import torch_attention, torch_kernels  # noqa: E402
from foretell.llm.families import read_config  # noqa: E402
from foretell.llm.safetensors_weights import SafetensorsWeights  # noqa: E402
from foretell.llm.torch import Batch, Decoder  # noqa: E402
from foretell.llm.torch_step import JoinedStep  # noqa: E402
from tests.llm.graph_runs import checkpoint  # noqa: E402
from tests.llm.test_graph_parity import CASES, TINY, config  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")
DISTANCES = {"float32": 1e-5, "bfloat16": 0.03} if CUDA else {"float32": 1e-5}
"""Of logits, in parts of their norm."""


def decoder_of(folder, made, dtype):
    checkpoint(folder, made)
    spec = read_config(json.loads((folder / "config.json").read_text()))
    return Decoder(spec, SafetensorsWeights(folder), DEVICE, getattr(torch, dtype))


def caches_of(decoder, slots):
    """Filled with noise: what lies behind a slot's position must not be seen."""
    spec, generator = decoder.spec, torch.Generator().manual_seed(0)
    shape = (slots, spec.kv_heads, spec.context + 1, spec.head_dim)
    return [torch.randn(shape, generator=generator).to(DEVICE, decoder.dtype) for _ in range(2 * spec.layers)]


def assert_alike(decoder, positions, distance):
    context = decoder.spec.context
    positions = torch.tensor([context if position < 0 else position for position in positions], device=DEVICE)
    tokens = torch.arange(5, 5 + len(positions), device=DEVICE)
    theirs, mine = caches_of(decoder, len(positions)), caches_of(decoder, len(positions))
    slots = torch.arange(len(positions), device=DEVICE)
    hidden = decoder.forward(Batch(tokens[:, None], positions[:, None], slots, 0, context), theirs)
    expected = decoder.logits(hidden.flatten(0, 1))
    step = JoinedStep(decoder)
    found = step.logits(tokens, positions, mine)
    assert found.isfinite().all()
    live = positions < context
    assert (found - expected)[live].norm() <= distance * expected[live].norm()
    assert step.best(found).tolist() == found.argmax(-1).tolist()
    for one, other in zip(theirs, mine, strict=True):
        written = one[live, :, positions[live]]
        assert (other[live, :, positions[live]] - written).norm() <= distance * written.norm()
        one[slots, :, positions] = other[slots, :, positions] = 0
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DISTANCES)
@pytest.mark.parametrize("name", CASES)
def test_a_family_says_what_its_layers_say(tmp_path, name, dtype):
    decoder = decoder_of(tmp_path, config(name), dtype)
    last = decoder.spec.context - 1
    assert_alike(decoder, [last, -1, 0, 7, last // 2], DISTANCES[dtype])


@pytest.mark.parametrize("dtype", DISTANCES)
@pytest.mark.parametrize("name", ["llama", "mistral window", "gemma2"])
def test_programs_that_share_a_long_sequence_add_up(tmp_path, monkeypatch, name, dtype):
    monkeypatch.setattr(torch_attention, "_LEAST", 64)
    made = config(name)
    made.max_position_embeddings = 900
    if getattr(made, "sliding_window", None):
        made.sliding_window = 300
    decoder = decoder_of(tmp_path, made, dtype)
    assert torch_attention.splits(3, decoder.spec.kv_heads) > 8
    assert_alike(decoder, [899, 65, 640], DISTANCES[dtype])


@pytest.mark.parametrize("rows", [1, 17, 64])
def test_any_number_of_rows(tmp_path, rows):
    positions = [(5 * row) % (TINY["max_position_embeddings"] - 1) for row in range(rows)]
    assert_alike(decoder_of(tmp_path, config("llama"), "float32"), positions, DISTANCES["float32"])


def test_of_equal_ones_the_first_is_the_best():
    logits = torch.zeros((3, 20000), device=DEVICE)
    logits[0, [7, 15000, 19999]] = 2.0
    logits[1] = -torch.arange(20000, device=DEVICE)
    assert torch_kernels.best(logits).tolist() == [7, 0, 0]
