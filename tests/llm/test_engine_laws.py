"""Tokens depend on nothing but the sequence itself; each sequence ends once; books balance. By the fake executor."""

from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.llm.engine import EngineSettings
from foretell.llm.executors.base import Shape
from foretell.llm.executors.fake import FakeExecutor
from foretell.llm.prefix_cache import NoPrefixCache, RadixCache
from foretell.llm.scheduler import Budget
from foretell.llm.speculate import DraftModel, NGramDrafter
from tests.llm.engine_world import EOS, VOCAB, AnyLength, Seer, expected, prompt_of, sequence, world

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
