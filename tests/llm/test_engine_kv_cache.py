"""The books of KV memory balance whatever happens, and slots stay compact."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.llm.kv_cache import PAGE, KvCache

actions = st.lists(
    st.tuples(st.sampled_from(["take", "grow", "give back", "compact"]), st.integers(0, 200)), max_size=60
)


@given(actions, st.integers(1, 6), st.integers(1, 120), st.one_of(st.none(), st.integers(1, 500)))
def test_books_balance_after_any_history(actions, slots, context, capacity):
    kv = KvCache(slots, context, capacity)
    held: dict[int, int] = {}
    for action, number in actions:
        tokens = 1 + number % context
        if action == "take" and kv.free_slots and kv.pages(tokens) <= kv.room:
            slot = kv.take(tokens)
            assert slot == min(set(range(slots)) - set(held)), "not the lowest free slot"
            held[slot] = tokens
        elif action == "grow" and held:
            slot = sorted(held)[number % len(held)]
            before = kv.reserved
            if kv.grow(slot, tokens):
                held[slot] = max(held[slot], tokens)
            else:
                assert kv.reserved == before
                assert kv.pages(tokens) - kv.pages(held[slot]) > kv.room
        elif action == "give back" and held:
            slot = sorted(held)[number % len(held)]
            kv.give_back(slot)
            del held[slot]
        elif action == "compact":
            for source, target in kv.compact():
                assert target < source
                held[target] = held.pop(source)
            assert set(held) == set(range(len(held))), "slots are not compact"
        kv.check()
        assert kv.reserved == sum(kv.pages(tokens) for tokens in held.values())


@pytest.mark.parametrize(("context", "capacity", "longest"), [(100, None, 100), (100, 70, 64), (100, 100, 100)])
def test_the_longest_sequence_fits_when_it_is_alone(context, capacity, longest):
    kv = KvCache(4, context, capacity)
    assert kv.longest == longest
    assert kv.grow(kv.take(1), longest)


def test_slots_grow_by_whole_pages_and_never_beyond_the_context():
    kv = KvCache(2, 40)
    assert [kv.pages(n) for n in (1, PAGE, PAGE + 1, 39, 40)] == [16, 16, 32, 40, 40]


def test_check_finds_books_that_do_not_balance():
    kv = KvCache(2, 40)
    kv.take(5)
    kv.reserved -= 1
    with pytest.raises(AssertionError, match="reserved"):
        kv.check()
