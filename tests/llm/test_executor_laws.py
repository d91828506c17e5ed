"""Laws of executors, held by every kind: what is said depends on the tokens in the slot and on nothing else."""

from pathlib import Path

import numpy as np
import pytest

from foretell.llm import executors
from foretell.llm.executors.base import Work
from tests.llm.executor_world import CONTEXT, KINDS, SLOTS, TINY, fill, llama, logits, some_tokens
from tests.llm.graph_runs import reference

pytest.importorskip("onnx", reason="the graph builder writes with onnx")
pytest.importorskip("transformers", reason="transformers makes the tiny checkpoint")
pytest.importorskip("torch", reason="transformers runs on torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module", autouse=True)
def model(folder):
    return llama(folder)


@pytest.fixture(params=KINDS)
def world(request, folder):
    """An executor and how far two ways to the same logits may lie apart."""
    make, tolerance = KINDS[request.param]
    executor = make(folder)
    yield executor, tolerance
    executor.close()


def near(world, one, other):
    np.testing.assert_allclose(one, other, rtol=0, atol=world[1])


def test_every_executor_of_the_house_is_held_to_these_laws():
    shared = {"__init__", "base", "memory", "runs"}
    assert {path.stem for path in Path(executors.__file__).parent.glob("*.py")} - shared <= set(KINDS)


def test_the_shape_says_what_the_executor_can_hold(world):
    shape = world[0].shape
    assert (shape.vocab, shape.slots, shape.context) == (TINY["vocab_size"], SLOTS, CONTEXT)
    assert shape.token_bytes > 0


@pytest.mark.parametrize("chunk", [1, 3, 7, 16])
def test_a_prompt_in_chunks_gives_the_scores_of_the_whole_prompt(world, chunk):
    executor, _ = world
    tokens = some_tokens(17)
    whole = logits(executor, Work(0, 0, tokens, 1))
    fill(executor, 1, tokens[:-1], chunk)
    near(world, whole, logits(executor, Work(1, 16, tokens[-1:], 1)))


def test_wanted_positions_are_the_last_ones(world):
    executor, _ = world
    tokens = some_tokens(9)
    every = logits(executor, Work(0, 0, tokens, 9))
    assert every.shape == (9, TINY["vocab_size"])
    for count in range(4):
        near(world, every[9 - count :], logits(executor, Work(0, 0, tokens, count)))


def test_a_batch_says_what_each_sequence_says_alone(world):
    executor, _ = world
    prompts = [some_tokens(4 + 3 * slot, slot) for slot in range(SLOTS)]
    alone = [logits(executor, Work(0, 0, prompt, 1)) for prompt in prompts]
    for slot, prompt in enumerate(prompts):
        fill(executor, slot, prompt[:-1])
    works = [Work(slot, len(prompt) - 1, prompt[-1:], 1) for slot, prompt in enumerate(prompts)]
    near(world, np.concatenate(alone), logits(executor, *works))
    near(world, np.concatenate(alone[::-1]), logits(executor, *works[::-1]))


def test_scores_come_in_the_order_of_the_works_whatever_their_lengths_and_slots(world):
    executor, _ = world
    prompts = [some_tokens(12, slot) for slot in range(SLOTS)]
    every = [logits(executor, Work(0, 0, prompt, 12)) for prompt in prompts]
    generator = np.random.default_rng(1)
    for slot, prompt in enumerate(prompts):
        fill(executor, slot, prompt[:6])
    for _ in range(20):
        works, expected = [], []
        for slot in generator.permutation(SLOTS)[: generator.integers(1, SLOTS + 1)]:
            count = int(generator.choice([1, 1, 1, 2, 4, 6]))
            wanted = int(generator.integers(0, count + 1))
            works.append(Work(int(slot), 6, prompts[slot][6 : 6 + count], wanted))
            expected.append(every[slot][6 + count - wanted : 6 + count])
        near(world, np.concatenate(expected), logits(executor, *works))


def test_slots_without_work_keep_what_they_hold(world):
    executor, _ = world
    prompts = [some_tokens(10, slot) for slot in range(5)]
    last = [logits(executor, Work(0, 0, prompt, 1)) for prompt in prompts]
    for slot, prompt in enumerate(prompts):
        fill(executor, slot, prompt[:-1])
    for slots in ((0, 2, 4), (1, 3), (4,), (0, 4)):
        got = logits(executor, *(Work(slot, 9, prompts[slot][-1:], 1) for slot in slots))
        near(world, np.concatenate([last[slot] for slot in slots]), got)


def test_rejected_drafts_are_overwritten(world):
    executor, _ = world
    tokens = some_tokens(12)
    true = logits(executor, Work(0, 0, tokens, 4))
    fill(executor, 1, tokens[:8])
    logits(executor, Work(1, 8, some_tokens(6, 5), 6))
    near(world, true[:2], logits(executor, Work(1, 8, tokens[8:10], 2)))
    near(world, true[2:3], logits(executor, Work(1, 10, tokens[10:11], 1)))


def test_a_moved_sequence_goes_on_as_before(world):
    executor, _ = world
    tokens = some_tokens(11)
    true = logits(executor, Work(0, 0, tokens, 1))
    for slot in (0, 1):
        fill(executor, slot, some_tokens(5, slot))
    fill(executor, 2, tokens[:-1])
    executor.release(1)
    executor.move(2, 1, 10)
    near(world, true, logits(executor, Work(1, 10, tokens[-1:], 1)))


def test_blocks_read_from_one_slot_serve_another(world):
    executor, _ = world
    tokens = some_tokens(17)
    true = logits(executor, Work(0, 0, tokens, 1))
    blocks = [executor.read(0, start, start + 4) for start in (0, 4, 8)]
    assert all(block.nbytes == 4 * executor.shape.token_bytes for block in blocks)
    fill(executor, 0, some_tokens(17, 9))  # a block is a copy
    for number, block in enumerate(blocks):
        executor.write(1, 4 * number, block)
    near(world, true, logits(executor, Work(1, 12, tokens[12:], 1)))


def test_a_released_slot_starts_anew(world):
    executor, _ = world
    tokens = some_tokens(8)
    true = logits(executor, Work(0, 0, tokens, 1))
    executor.release(0)
    near(world, true, logits(executor, Work(0, 0, tokens, 1)))


def test_a_slot_can_be_filled_to_the_last_position_of_the_context(world):
    executor, _ = world
    tokens = some_tokens(CONTEXT)
    whole = logits(executor, Work(0, 0, tokens, 1))
    fill(executor, 0, some_tokens(3, 4))
    fill(executor, 1, tokens[:-1], 20)
    both = logits(executor, Work(0, 3, [5], 1), Work(1, CONTEXT - 1, tokens[-1:], 1))
    near(world, whole, both[1:])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fake"])
def test_scores_are_those_of_transformers(model, folder, kind):
    make, tolerance = KINDS[kind]
    executor = make(folder)
    tokens = some_tokens(30)
    got = logits(executor, Work(0, 0, tokens, 30))
    executor.close()
    np.testing.assert_allclose(got, reference(model, [tokens])[0], rtol=0, atol=10 * tolerance)
