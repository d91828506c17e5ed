"""What a step does: who runs, who waits, who ends, and why. By the fake executor."""

import math

import pytest

from foretell.core.errors import DeadlineExceeded, InvalidInput, ModelFailed, Overloaded
from foretell.llm.engine import EngineSettings
from foretell.llm.executors.base import Shape
from foretell.llm.executors.fake import FakeExecutor
from foretell.llm.prefix_cache import RadixCache
from foretell.llm.scheduler import Budget
from tests.llm.engine_world import VOCAB, drive, expected, prompt_of, sequence, texts, world

NEVER = -1  # no token


class Works:
    """Keeps what ran: for each step the (slot, past, tokens) of its works."""

    def __init__(self):
        self.steps = []

    def __call__(self, works):
        self.steps.append([(work.slot, work.past, len(work.tokens)) for work in works])

    def prompt_tokens(self):
        return sum(count for step in self.steps for _, _, count in step if count > 1)


def alone(prompt, **rest):
    return expected(FakeExecutor(Shape(VOCAB, 1, rest.pop("context", 128), 4)), sequence(prompt, **rest))


def test_a_long_prompt_stalls_running_streams_by_no_more_than_one_chunk():
    works = Works()
    engine, _, _ = world(slots=8, context=8192, settings=EngineSettings(Budget(chunk=64)), spend=works)
    streams = [sequence(prompt_of(20, n), n, max_tokens=200) for n in range(4)]
    engine.add(*streams)
    engine.step()
    long = [sequence(prompt_of(4000, n), 10 + n, max_tokens=5) for n in range(2)]
    engine.add(*long)
    began = len(works.steps)
    while long[0].count == 0:
        spoke = {event.sequence for event in engine.step() if event.tokens}
        assert spoke >= set(streams), "a stream waited"
    for step in works.steps[began:]:
        assert sum(count for _, _, count in step if count > 1) <= 64
    assert len(works.steps) - began == math.ceil(4000 / 64), "the prompt got no full chunks"
    assert long[1].computed < 64, "two long prompts were read by turns: both answer later for it"


def test_chunks_are_larger_while_nobody_decodes():
    works = Works()
    engine, _, _ = world(context=2048, settings=EngineSettings(Budget(chunk=64, alone=512)), spend=works)
    engine.add(sequence(prompt_of(1000), max_tokens=2))
    drive(engine)
    assert [step[0][2] for step in works.steps] == [512, 488, 1]


def test_short_prompts_share_a_step_and_no_tiny_chunk_is_cut():
    works = Works()
    engine, _, _ = world(slots=8, settings=EngineSettings(Budget(chunk=64, alone=64, least=16)), spend=works)
    engine.add(*[sequence(prompt_of(25, n), n, max_tokens=1) for n in range(4)])
    drive(engine)
    assert [[count for _, _, count in step] for step in works.steps] == [[25, 25], [25, 25]]


def test_a_short_prompt_overtakes_a_long_one_but_not_for_ever():
    engine, _, watch = world(slots=8, context=8192, settings=EngineSettings(Budget(64, 64)))
    long = sequence(prompt_of(1000), 0, max_tokens=1)
    engine.add(long)
    engine.step()
    short = sequence(prompt_of(30), 1, max_tokens=1)
    engine.add(short)
    engine.step()
    assert short.ended
    assert not long.ended
    watch.now += 10.0
    later = sequence(prompt_of(500, 2), 2, max_tokens=1)
    engine.add(later)
    while not long.ended:
        engine.step()
    assert later.computed < 64, "it read more than what the last chunk of the other left over"


def test_urgent_requests_enter_first():
    engine, _, _ = world(slots=1)
    engine.add(sequence(prompt_of(10), 0, max_tokens=3, priority=5))
    engine.add(sequence(prompt_of(10), 1, max_tokens=3, priority=5))
    engine.add(sequence(prompt_of(10), 2, max_tokens=3, priority=-1))
    ends = [event.sequence.number for event in drive(engine) if event.reason]
    assert ends == [2, 0, 1]


def test_an_urgent_request_takes_the_slot_of_a_less_urgent_one_which_goes_on_later_unchanged():
    engine, _, _ = world(slots=1)
    modest = sequence(prompt_of(10), 0, max_tokens=20, priority=1)
    engine.add(modest)
    for _ in range(5):
        engine.step()
    said = modest.count
    engine.add(sequence(prompt_of(10, 1), 1, max_tokens=3))
    events = drive(engine)
    assert [event.sequence.number for event in events if event.reason] == [1, 0]
    assert 0 < said < 20
    assert modest.tokens[10:] == alone(prompt_of(10), max_tokens=20)
    assert not any(event.sequence is modest and not event.tokens for event in events), "it left the queue twice"


def test_out_of_memory_the_least_urgent_is_sent_back_and_nothing_changes():
    works = Works()
    engine, _, _ = world(slots=4, settings=EngineSettings(kv_bytes=4 * 160), spend=works)
    for n in range(3):
        engine.add(sequence(prompt_of(30, n), n, max_tokens=60))
    said = texts(drive(engine))
    for n in range(3):
        assert said[n] == alone(prompt_of(30, n), max_tokens=60)
    assert works.prompt_tokens() > 90, "nobody was preempted: the test tests nothing"


def test_a_preempted_sequence_finds_its_tokens_in_the_prefix_cache():
    works = Works()
    cache = RadixCache(10_000, 4, 4)
    engine, _, _ = world(slots=4, settings=EngineSettings(kv_bytes=4 * 160), spend=works, cache=cache)
    for n in range(3):
        engine.add(sequence(prompt_of(30, n), n, max_tokens=60))
    said = texts(drive(engine))
    assert all(said[n] == alone(prompt_of(30, n), max_tokens=60) for n in range(3))
    assert works.prompt_tokens() <= 90 + 3 * 4
    assert (cache.hit_tokens, cache.missed_tokens) == (0, 90), "only a prompt's first entry counts as hit or miss"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": []}, "no tokens"),
        ({"prompt": [1] * 128}, "the prompt has 128 tokens and the model's context holds 128"),
        ({"prompt": [1] * 500}, "the prompt has 500 tokens and the model's context holds 128"),
        ({"prompt": [1] * 120}, "the prompt has 120 tokens and KV memory holds 112"),
        ({"prompt": [1, VOCAB]}, f"token {VOCAB} of the prompt is none of the model's {VOCAB}"),
        ({"prompt": [1, -1]}, "token -1"),
        ({"prompt": [1], "max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_what_can_never_run_is_refused_with_its_numbers(bad, message):
    engine, _, _ = world(settings=EngineSettings(kv_bytes=4 * 120))
    good = sequence([1, 2, 3], max_tokens=2)
    with pytest.raises(InvalidInput, match=message):
        engine.add(good, sequence(**bad))
    assert engine.load().waiting == 0, "half of a request was kept"


def test_a_full_queue_says_when_to_come_back():
    engine, _, watch = world(slots=1, settings=EngineSettings(max_waiting=3))
    engine.add(sequence([1, 2], 0, max_tokens=5))
    engine.step()
    engine.add(sequence([1, 2], 1, max_tokens=5), sequence([1, 2], 2, max_tokens=5))
    with pytest.raises(Overloaded, match="2 sequences wait already and the queue holds 3") as refusal:
        engine.add(sequence([1, 2], 3), sequence([1, 2], 4))
    assert 0 < refusal.value.retry_after_s <= 60
    assert engine.load().waiting == 2
    watch.now += 1.0
    drive(engine)
    engine.add(sequence([1, 2], 5), sequence([1, 2], 6))


def test_deadlines_end_what_waits_and_what_runs():
    engine, executor, watch = world(slots=1)
    runs = sequence(prompt_of(10), 0, deadline=101.0)
    waits = sequence(prompt_of(10), 1, deadline=100.5)
    patient = sequence(prompt_of(10), 2, max_tokens=1, deadline=200.0)
    engine.add(runs, waits, patient)
    engine.step()
    watch.now = 100.6
    (event,) = [event for event in engine.step() if event.error]
    assert event.sequence is waits
    assert isinstance(event.error, DeadlineExceeded)
    assert "waited, after 0 tokens" in event.error.message
    watch.now = 101.0
    (event, *others) = engine.step()
    assert event.sequence is runs
    assert "was generated, after 2 tokens" in event.error.message
    assert [(other.sequence, other.reason) for other in others] == [(patient, None), (patient, "length")]
    assert drive(engine) == []
    assert not executor.slots[0]


def test_cancelling_ends_silently_wherever_the_sequence_is():
    engine, executor, _ = world(slots=1)
    runs, waits = sequence(prompt_of(10), 0), sequence(prompt_of(10), 1)
    engine.add(runs, waits)
    engine.step()
    engine.cancel(waits)
    engine.cancel(runs)
    engine.cancel(runs)
    engine.check()
    assert engine.step() == []
    assert executor.slots == [[]]
    load = engine.load()
    assert (load.running, load.waiting, load.kv_tokens) == (0, 0, 0)


def test_a_cancelled_stream_makes_room_at_once():
    engine, _, _ = world(slots=1)
    first, second = sequence(prompt_of(10), 0), sequence(prompt_of(10), 1)
    engine.add(first, second)
    engine.step()
    engine.cancel(first)
    assert {event.sequence for event in engine.step()} == {second}


def test_a_sequence_ends_with_a_stop_token_which_is_said():
    answer = alone(prompt_of(10), max_tokens=20)
    stop = answer[7]
    engine, _, _ = world()
    engine.add(sequence(prompt_of(10), max_tokens=20, stop_ids=(stop,)))
    events = drive(engine)
    assert texts(events)[0] == answer[: answer.index(stop) + 1]
    assert events[-1].reason == "stop"


def test_a_sequence_ends_where_the_context_is_full():
    engine, _, _ = world(context=40)
    asked = sequence(prompt_of(30))
    engine.add(asked)
    events = drive(engine)
    assert events[-1].reason == "length"
    assert len(asked.tokens) == 40


def test_the_first_word_of_a_sequence_is_that_it_left_the_queue():
    engine, _, _ = world(slots=1, cache=RadixCache(10_000, 4, 4))
    engine.add(sequence(prompt_of(10), 0, max_tokens=1))
    engine.add(sequence(prompt_of(10), 1, max_tokens=1))
    events = drive(engine)
    assert [(e.sequence.number, len(e.tokens), e.reason) for e in events] == [
        (0, 0, None),
        (0, 1, "length"),
        (1, 0, None),
        (1, 1, "length"),
    ]
    assert [e.sequence.cached for e in events] == [0, 0, 8, 8]


def test_choices_of_one_prompt_read_it_once():
    works = Works()
    engine, _, _ = world(slots=4, cache=RadixCache(10_000, 4, 8), spend=works, settings=EngineSettings(Budget(16, 16)))
    prompt = prompt_of(67)
    engine.add(*[sequence(prompt, 0, choice=n, max_tokens=4, temperature=1.0, seed=n) for n in range(4)])
    drive(engine)
    assert works.prompt_tokens() == 67 + 3 * (67 % 8)
    assert engine.load().hit_tokens == 3 * 64


def test_a_prompt_that_shares_only_its_beginning_does_not_wait_for_another():
    engine, _, _ = world(slots=4, cache=RadixCache(10_000, 4, 8), settings=EngineSettings(Budget(32, 32)))
    engine.add(sequence(prompt_of(120), 0, max_tokens=1))
    engine.step()
    short = sequence([*prompt_of(120)[:16], 3, 4], 1, max_tokens=1)
    engine.add(short)
    engine.step()
    assert short.ended


def test_a_sequence_that_the_model_fails_at_fails_alone():
    def fail(works):
        if any(13 in work.tokens for work in works):
            raise RuntimeError("bad token")

    engine, executor, _ = world(slots=4, spend=fail, follow=lambda tokens: len(tokens) % 8)
    engine.add(*[sequence([1, 2, 13 if n == 1 else 3], n, max_tokens=5) for n in range(3)])
    events = drive(engine)
    failed = [event for event in events if event.error]
    assert [event.sequence.number for event in failed] == [1]
    assert isinstance(failed[0].error, ModelFailed)
    assert "RuntimeError: bad token" in failed[0].error.message
    assert {n: said for n, said in texts(events).items() if said} == {0: [3, 4, 5, 6, 7], 2: [3, 4, 5, 6, 7]}
    assert not any(executor.slots)


def test_a_sequence_whose_token_cannot_be_chosen_fails_alone():
    class Broken:
        finished = False
        error = ""

        def mask(self):
            raise ValueError("no such rule")

        def advance(self, token):
            pass

    engine, _, _ = world()
    bad, good = sequence([1, 2, 3], 0, max_tokens=3), sequence([1, 2, 3], 1, max_tokens=3)
    bad.sampler.constraint = Broken()
    engine.add(bad, good)
    events = drive(engine)
    assert [event.sequence.number for event in events if event.error] == [0]
    assert texts(events)[1] == alone([1, 2, 3], max_tokens=3)


def test_the_last_slot_moves_into_a_hole_unless_somebody_enters_there():
    engine, executor, _ = world(slots=3)
    moves = []
    move = executor.move
    executor.move = lambda *args: (moves.append(args), move(*args))
    streams = [sequence(prompt_of(10, n), n, max_tokens=3 if n == 0 else 20) for n in range(4)]
    engine.add(*streams)
    while not streams[0].ended:
        engine.step()
    engine.step()
    assert streams[3].slot == 0
    assert not moves
    engine.cancel(streams[3])
    engine.step()
    assert [move[:2] for move in moves] == [(2, 0)]
    assert streams[2].slot == 0
    drive(engine)


def test_load_counts_what_is_held():
    engine, _, _ = world(slots=2, cache=RadixCache(10_000, 4, 4))
    engine.add(*[sequence(prompt_of(10, n), n, max_tokens=5) for n in range(3)])
    engine.step()
    load = engine.load()
    assert (load.running, load.waiting, load.kv_tokens, load.kv_capacity) == (2, 1, 20, 256)
    assert (load.cached_tokens, load.hit_tokens, load.missed_tokens) == (16, 0, 20)


def test_an_idle_engine_does_nothing():
    engine, executor, _ = world()
    assert engine.step() == []
    assert executor.runs == 0
