"""Guessing never loses and gains where texts repeat themselves, by simulated machines; the drafters guess rightly."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.core.generation import Sampling
from foretell.llm.costs import Curve, StepCosts
from foretell.llm.draft_length import DraftLength, Verified
from foretell.llm.engine import Engine, EngineSettings
from foretell.llm.executors.base import Shape
from foretell.llm.executors.fake import FakeExecutor
from foretell.llm.sampling import Sampler
from foretell.llm.sequence import Sequence
from foretell.llm.speculate import MOST, DraftModel, NGramDrafter, NoDrafter, Offer
from tests.llm.engine_world import VOCAB, Seer, Watch, drive, expected, prompt_of, sequence, texts, world


def small_machine(works):
    """Seconds of a step on two cores: about what was measured with a model of 135M parameters in int4."""
    rows = [0, 1, 4, 8, 16, 32, 512]
    seconds = [0.0, 0.0085, 0.0135, 0.0225, 0.045, 0.088, 1.2]
    single = sum(len(work.tokens) == 1 for work in works)
    longer = [len(work.tokens) for work in works if len(work.tokens) > 1]
    return float(np.interp(single, rows, seconds) + np.interp(longer, rows, seconds).sum())


def launches(works):
    """A machine where every run has a high fixed cost, and rows are nearly free."""
    single = sum(len(work.tokens) == 1 for work in works)
    return 0.006 * (bool(single) + sum(len(work.tokens) > 1 for work in works)) + 0.00002 * single


def joined(works):
    """The same machine, but the executor joins everything in one run."""
    return 0.006 + 0.00002 * sum(len(work.tokens) for work in works)


def copying(share, seed, period=100):
    """A text whose next token is, with probability `share`, the one that stood `period` tokens before."""

    def follow(tokens):
        n = len(tokens)
        if n > period and hash((seed, n, *tokens[-2:])) % 1000 < 1000 * share:
            return tokens[n - period]
        return hash((seed, n, tokens[-1])) % 512

    return follow


def seconds(machine, streams, follow, drafter, tokens):
    """What the steps cost that say so many tokens, prompts aside, and what is said to be saved.

    More texts wait than can run. The clock that the engine sees is that of a noisy machine, which also pauses.
    """
    watch, random, total = Watch(), np.random.default_rng(1), 0.0

    def spend(works):
        nonlocal total
        total += machine([work for work in works if len(work.tokens) <= MOST + 1])
        watch.now += (
            machine(works) * max(1 + 0.05 * random.standard_normal(), 0.3) * (4 if random.random() < 0.005 else 1)
        )

    executor = FakeExecutor(Shape(512, streams, 1024, 4), follow, peak=20.0, spend=spend)
    engine = Engine(executor, EngineSettings(), None, drafter, clock=watch)
    for n in range(1 + tokens // 200 + streams):
        prompt = prompt_of(120, n)
        engine.add(Sequence(n, 0, prompt, Sampler(Sampling(temperature=0.0), 0, prompt), max_tokens=200))
    said = 0
    while said < tokens:
        said += sum(len(event.tokens) for event in engine.step())
    return total * tokens / said, engine.load().saved_s


def mixed(a, b):
    """Texts of two kinds: which one is told by the first token."""
    return lambda tokens: (a if tokens[0] % 2 else b)(tokens)


@pytest.mark.parametrize("streams", [1, 3, 12])
@pytest.mark.parametrize("machine", [small_machine, launches, joined])
@pytest.mark.parametrize(
    "follow",
    [copying(0.0, 1), copying(0.5, 1), copying(0.85, 1), mixed(copying(0.97, 1), copying(0.1, 1)), copying(0.98, 1)],
    ids=["novel", "half", "mostly", "mixed", "copied"],
)
def test_guessing_never_loses(machine, streams, follow):
    off_s, _ = seconds(machine, streams, follow, NoDrafter(), 500 + 60 * streams)
    on_s, _ = seconds(machine, streams, follow, NGramDrafter(), 500 + 60 * streams)
    assert off_s / on_s >= 0.97


@pytest.mark.parametrize(
    ("machine", "streams", "gain"), [(small_machine, 1, 1.6), (small_machine, 2, 1.3), (launches, 1, 3), (joined, 8, 2)]
)
def test_copied_texts_gain(machine, streams, gain):
    off_s, _ = seconds(machine, streams, copying(0.98, 1), NoDrafter(), 600 * streams)
    on_s, saved_s = seconds(machine, streams, copying(0.98, 1), NGramDrafter(), 600 * streams)
    assert off_s / on_s >= gain
    assert saved_s == pytest.approx(off_s - on_s, rel=0.25), "the time said to be saved is not the time saved"


def test_a_text_that_starts_to_repeat_itself_is_noticed():
    def follow(tokens):
        return copying(0.0 if len(tokens) < 180 else 1.0, 1)(tokens)

    off_s, _ = seconds(small_machine, 1, follow, NoDrafter(), 1200)
    on_s, _ = seconds(small_machine, 1, follow, NGramDrafter(), 1200)
    assert off_s / on_s >= 1.2


def test_a_drafter_that_turns_useless_is_found_out():
    """Right for a while, then always wrong while its offers look the same."""
    watch = Watch()

    def spend(works):
        watch.now += small_machine(works)

    executor = FakeExecutor(Shape(VOCAB, 1, 4096, 4), peak=20.0, spend=spend)
    seer = Seer(executor, sure=1.0)
    engine = Engine(executor, EngineSettings(), None, seer, clock=watch)
    asked = sequence([1, 2, 3], max_tokens=1200)
    engine.add(asked)
    while asked.count < 600:
        engine.step()
    assert asked.accepted > 300
    seer._sure = 0.0
    began, count = watch.now, asked.count
    drive(engine)
    assert (watch.now - began) / (asked.count - count) < 0.0085 / 0.95


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("sure", [0.0, 0.5, 1.0])
def test_tokens_are_the_same_with_guesses_of_any_quality(temperature, sure):
    executor = FakeExecutor(Shape(VOCAB, 1, 128, 4), peak=3.0)
    engine, _, _ = world(drafter=Seer(executor, sure), lengths=Always(5), peak=3.0)
    asks = [sequence(prompt_of(20, n), n, temperature=temperature, seed=n, max_tokens=50) for n in range(4)]
    engine.add(*asks)
    said = texts(drive(engine))
    for n, ask in enumerate(asks):
        fresh = sequence(prompt_of(20, n), n, temperature=temperature, seed=n, max_tokens=50)
        assert said[n] == expected(executor, fresh)
        assert ask.accepted <= ask.drafted
        if temperature == 0.0 and sure in (0.0, 1.0):
            assert (ask.accepted > 35) == (sure == 1.0)


class Always(DraftLength):
    def __init__(self, length):
        super().__init__()
        self._length = length

    def choose(self, decodes, asked):
        return [min(self._length, offer.most) for _, offer in asked]


def test_no_guess_reaches_beyond_the_end_of_a_sequence():
    executor = FakeExecutor(Shape(VOCAB, 1, 64, 4))
    for ask in (sequence([1] * 50, max_tokens=9), sequence([1] * 50)):
        engine, _, _ = world(context=64, drafter=Seer(executor, 1.0), lengths=Always(16))
        engine.add(ask)
        drive(engine)
        assert len(ask.tokens) == (59 if ask.max_tokens else 64)
        assert ask.drafted == ask.accepted


def test_sampled_tokens_follow_the_models_probabilities_with_and_without_guesses():
    """Texts of three tokens, the last of which is often judged as a guess; chi-square over all texts."""
    executor = FakeExecutor(Shape(4, 1, 128, 4), peak=1.0)

    def shares(tokens):
        weights = np.exp(executor.logits(tokens).astype(np.float64))
        return weights / weights.sum()

    prompt, draws = [1, 2], 3000
    every = list(product(range(4), repeat=3))
    likely = np.array([shares(prompt)[a] * shares([*prompt, a])[b] * shares([*prompt, a, b])[c] for a, b, c in every])
    for guesses in (0, 1):
        model = FakeExecutor(Shape(4, 50, 128, 4), peak=1.0)
        drafter, lengths = Seer(executor, 0.8, vocab=4), Always(2 * guesses)
        engine = Engine(model, EngineSettings(max_waiting=draws), None, drafter, lengths, Watch())
        asks = [sequence(prompt, n, temperature=1.0, seed=7 * n + guesses, max_tokens=4) for n in range(draws)]
        engine.add(*asks)
        said = texts(drive(engine))
        counts = np.zeros(64)
        for a, b, c, _ in said.values():
            counts[a * 16 + b * 4 + c] += 1
        chi2 = ((counts - draws * likely) ** 2 / (draws * likely)).sum()
        assert chi2 < 63 + 4 * np.sqrt(2 * 63), "far from the model's probabilities"
        assert sum(ask.accepted for ask in asks) >= 500 * guesses


@given(st.lists(st.integers(1, 4), min_size=1, max_size=60), st.integers(1, 16))
def test_lookup_goes_on_as_the_text_went_on_before(tokens, count):
    drafter, ask = NGramDrafter(), sequence([9])
    ask.tokens = []
    for token in tokens:
        ask.tokens.append(token)
        offer = drafter.offer(ask)
        n = len(ask.tokens)
        latest = {
            size: max(
                (end for end in range(size, n) if ask.tokens[end - size : end] == ask.tokens[n - size :]), default=0
            )
            for size in (2, 4)
            if n > size
        }
        end = latest.get(4) or latest.get(2)
        if not end:
            assert offer is None
            continue
        (guesses,) = drafter.propose([(ask, count)])
        assert guesses[: n - end] == ask.tokens[end : end + count]
        assert len(guesses) == count
        agree = 0
        while agree < 16 and agree < end and ask.tokens[end - 1 - agree] == ask.tokens[n - 1 - agree]:
            agree += 1
        assert offer.grade == sum(agree >= bound for bound in (4, 8, 16))


def test_lookup_goes_round_in_a_loop():
    drafter, ask = NGramDrafter(), sequence([1, 2, 3, 1, 2, 3, 1, 2])
    assert drafter.offer(ask).grade == 1
    assert drafter.propose([(ask, 7)]) == [[3, 1, 2, 3, 1, 2, 3]]


def test_lookup_forgets_who_has_ended():
    drafter = NGramDrafter()
    engine, _, _ = world(drafter=drafter)
    engine.add(sequence(prompt_of(10), max_tokens=5))
    drive(engine)
    assert not drafter._indexes


def test_a_draft_model_that_is_the_model_is_always_right():
    draft = FakeExecutor(Shape(VOCAB, 2, 128, 4))
    engine, executor, _ = world(drafter=DraftModel(draft, VOCAB), lengths=Always(4))
    asks = [sequence(prompt_of(30, n), n, max_tokens=26) for n in range(4)]
    engine.add(*asks)
    said = texts(drive(engine))
    alone = FakeExecutor(Shape(VOCAB, 1, 128, 4))
    for n, ask in enumerate(asks):
        assert said[n] == expected(alone, sequence(prompt_of(30, n), n, max_tokens=26))
        assert ask.accepted == ask.drafted > 0
    assert executor.runs < 26
    assert not any(draft.slots), "the draft model's slots were not given back"


def test_a_drafter_that_fails_costs_its_guesses_and_nobodys_text():
    class Failing(NGramDrafter):
        fails = True

        def propose(self, asked):
            if self.fails:
                self.fails = False
                raise RuntimeError("out of memory")
            return super().propose(asked)

    engine, _, _ = world(drafter=Failing(), lengths=Always(4), follow=lambda tokens: tokens[-10])
    ask = sequence(prompt_of(10) * 2, 0, max_tokens=20)
    engine.add(ask)
    assert texts(drive(engine))[0] == prompt_of(10) * 2
    assert ask.drafted > 0, "later guesses were made"


def test_a_draft_model_stays_within_its_memory_and_forgets_who_was_not_asked_for_long():
    model = DraftModel(FakeExecutor(Shape(VOCAB, 4, 128, 4)), VOCAB, capacity=128)
    first, second, third = (sequence(prompt_of(30, n), n) for n in range(3))
    for ask in (first, second, third):
        assert len(model.propose([(ask, 4)])[0]) == 4
        model._kv.check()
    assert list(model._held) == [second, third], "48 tokens each, of 128"
    assert [len(guesses) for guesses in model.propose([(first, 4), (second, 4), (third, 4)])] == [0, 4, 4]
    model._kv.check()


def test_a_draft_model_reads_only_what_is_new():
    works = []
    draft = FakeExecutor(Shape(VOCAB, 1, 4096, 4), spend=lambda run: works.extend(len(w.tokens) for w in run))
    model = DraftModel(draft, VOCAB)
    ask = sequence(prompt_of(600))
    (guesses,) = model.propose([(ask, 3)])
    assert works == [256, 256, 88, 1, 1]
    ask.tokens += [guesses[0], guesses[1], (guesses[2] + 1) % VOCAB]
    works.clear()
    assert len(model.propose([(ask, 2)])[0]) == 2
    assert works == [1, 1]


def test_a_draft_model_guesses_no_token_that_the_model_does_not_have():
    draft = FakeExecutor(Shape(VOCAB, 1, 128, 4), follow=lambda tokens: VOCAB - 1)
    assert DraftModel(draft, VOCAB - 1).propose([(sequence([1, 2]), 3)]) == [[]]


def test_a_draft_model_offers_nothing_beyond_its_context():
    model = DraftModel(FakeExecutor(Shape(VOCAB, 1, 32, 4)), VOCAB)
    assert model.offer(sequence([1] * 30)).most == 2
    assert model.offer(sequence([1] * 32)) is None


def test_costs_between_and_beyond_what_was_measured():
    curve = Curve()
    assert curve.at(3) is None
    assert curve.at(0) == 0.0
    curve.learn(4, 0.010)
    assert curve.at(4) == 0.010
    assert 0.004 < curve.at(1) < 0.010 < curve.at(8) < 0.020
    curve.learn(8, 0.014)
    assert curve.at(6) == pytest.approx(0.012)


def test_a_pause_of_the_machine_hardly_moves_a_cost():
    curve = Curve()
    for _ in range(50):
        curve.learn(1, 0.010)
    curve.learn(1, 5.0)
    assert curve.at(1) <= 0.011
    for _ in range(100):
        curve.learn(1, 0.020)
    assert curve.at(1) == pytest.approx(0.020, rel=0.01)


def test_a_verification_costs_what_a_step_takes_beyond_its_single_tokens():
    costs = StepCosts()
    for _ in range(3):
        costs.learn(3, [], 0.012)
        costs.learn(4, [], 0.014)
    for _ in range(60):
        costs.learn(3, [5], 0.012 + 0.013)
        costs.learn(2, [5, 9], costs.decode(2) + 0.013 + 0.020)
    assert costs.verify(5) == pytest.approx(0.013, rel=0.1)
    assert costs.verify(9) == pytest.approx(0.020, rel=0.1)


def test_nothing_is_guessed_before_a_plain_step_was_measured_nor_on_an_empty_account():
    lengths, ask = DraftLength(), sequence([1, 2])
    asked = [(ask, Offer(3, 16))]
    assert lengths.choose(1, asked) == [0]
    lengths.learn(1, [], 0.01)
    assert lengths.choose(1, asked)[0] > 0
    for _ in range(10):
        lengths.learn(0, [Verified(ask, 3, 8, 0)], 0.04)
    assert lengths.saved_s < 0
    assert lengths.choose(1, asked) == [0]
