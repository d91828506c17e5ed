"""Tokens depend on nothing but the sequence itself; each sequence ends once; books balance. By the fake executor."""

from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.llm.engine import Engine, EngineSettings
from foretell.llm.executors.base import Shape
from foretell.llm.executors.fake import FakeExecutor
from foretell.llm.prefix_cache import NoPrefixCache, RadixCache
from foretell.llm.scheduler import Budget
from foretell.llm.speculate import DraftModel, NGramDrafter
from tests.llm.engine_world import EOS, VOCAB, AnyLength, Seer, drive, expected, prompt_of, sequence, texts, world

requests = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.integers(0, 30),
            "shared": st.integers(0, 60),
            "own": st.integers(1, 40),
            "max_tokens": st.integers(1, 50),
            "priority": st.integers(0, 2),
            "temperature": st.sampled_from([0.0, 1.0]),
            "cancel_after": st.one_of(st.none(), st.none(), st.integers(0, 40)),
            "deadline_after": st.one_of(st.none(), st.none(), st.integers(0, 60)),
        }
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(
    requests=requests,
    slots=st.integers(1, 5),
    kv_tokens=st.integers(128, 400),
    budget=st.builds(Budget, st.integers(1, 40), st.integers(1, 80), st.integers(1, 16)),
    cache_tokens=st.sampled_from([0, 30, 100, 1000]),
    block=st.sampled_from([4, 16]),
    drafts=st.sampled_from(["none", "seer", "ngram", "model"]),
)
def test_tokens_depend_on_no_batch_chunk_cache_preemption_or_draft(
    requests, slots, kv_tokens, budget, cache_tokens, block, drafts
):
    alone = FakeExecutor(Shape(VOCAB, 1, 128, 4), peak=3.0)
    drafters = {
        "none": lambda: None,
        "seer": lambda: Seer(alone),
        "ngram": NGramDrafter,
        "model": lambda: DraftModel(FakeExecutor(Shape(VOCAB + 2, 2, 100, 4), peak=3.0), VOCAB),
    }
    engine, executor, watch = world(
        slots=slots,
        settings=EngineSettings(budget, kv_bytes=kv_tokens * 4),
        cache=RadixCache(cache_tokens * 4, 4, block) if cache_tokens else NoPrefixCache(),
        drafter=drafters[drafts](),
        lengths=AnyLength(),
        peak=3.0,
    )
    run_and_compare(engine, executor, watch, requests, alone)


def run_and_compare(engine, executor, watch, requests, alone):

    def fresh(number, request):
        prompt = prompt_of(60)[: request["shared"]] + prompt_of(request["own"], number)
        deadline = request["deadline_after"]
        return sequence(
            prompt,
            number,
            temperature=request["temperature"],
            seed=number,
            stop_ids=(EOS,),
            max_tokens=request["max_tokens"],
            priority=request["priority"],
            deadline=None if deadline is None else 100.0 + request["at"] + deadline,
        )

    sequences = [fresh(number, request) for number, request in enumerate(requests)]
    said = {number: [] for number in range(len(requests))}
    ends = dict.fromkeys(said, 0)
    silent = set()
    for tick in range(5000):
        watch.now = 100.0 + tick
        for number, request in enumerate(requests):
            if request["at"] == tick:
                engine.add(sequences[number])
            if request["cancel_after"] is not None and request["at"] + request["cancel_after"] == tick:
                if not sequences[number].ended:
                    silent.add(number)
                engine.cancel(sequences[number])
        for event in engine.step():
            number = event.sequence.number
            assert number not in silent, "something was said of a cancelled sequence"
            assert not ends[number], "something was said after the end"
            said[number] += [sampled.token for sampled in event.tokens]
            ends[number] += event.reason is not None or event.error is not None
            if event.error is not None:
                silent.add(number)
        engine.check()
        load = engine.load()
        if tick > 30 + 60 and not load.running and not load.waiting:
            break
    else:
        raise AssertionError("the engine does not come to an end")
    for number, request in enumerate(requests):
        whole = expected(alone, fresh(number, request))
        if number in silent:
            assert said[number] == whole[: len(said[number])]
        else:
            assert said[number] == whole
            assert ends[number] == 1
    assert not any(executor.slots), "a slot was not given back"


class Rounding(FakeExecutor):
    """Kernels that round a token that runs alone otherwise than one beside others of its sequence, as ONNX Runtime's
    attention does: what follows depends on how each token was computed."""

    def run(self, works):
        return super().run([w._replace(tokens=[t + VOCAB * (len(w.tokens) > 1) for t in w.tokens]) for w in works])


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 60), st.integers(0, 40), st.booleans()), min_size=1, max_size=8
    ),
    slots=st.integers(1, 5),
    budget=st.builds(Budget, st.integers(4, 40), st.integers(4, 80), st.integers(4, 16)),
    cache_tokens=st.sampled_from([0, 100, 1000]),
)
def test_what_must_be_repeatable_is_the_same_to_the_last_bit(requests, slots, budget, cache_tokens):
    def fresh(number, repeatable=True):
        _, shared, own, _ = requests[number]
        asked = sequence(
            prompt_of(60)[:shared] + prompt_of(own, number), number, temperature=1.0, seed=number, max_tokens=20
        )
        asked.repeatable = repeatable
        return asked

    def engine(slots, **rest):
        executor = Rounding(Shape(VOCAB, slots, 128, 4), peak=3.0)
        return Engine(executor, drafter=Seer(executor), lengths=AnyLength(), **rest)

    busy = engine(
        slots,
        settings=EngineSettings(budget),
        cache=RadixCache(cache_tokens * 4, 4, 4) if cache_tokens else NoPrefixCache(),
    )
    said = {number: [] for number in range(len(requests))}
    for tick in range(2000):
        for number, (at, _, _, repeatable) in enumerate(requests):
            if at == tick:
                busy.add(fresh(number, repeatable))
        for event in busy.step():
            said[event.sequence.number] += [sampled.token for sampled in event.tokens]
    for number, (_, _, _, repeatable) in enumerate(requests):
        if repeatable:
            alone = engine(1)
            alone.add(fresh(number))
            assert said[number] == texts(drive(alone))[number]
