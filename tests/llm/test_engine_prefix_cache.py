"""The prefix cache finds what it was given, keeps its byte budget, and forgets what was used least recently."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.llm.executors.fake import FakeBlock
from foretell.llm.prefix_cache import NoPrefixCache, RadixCache

SIZE = 4
texts = st.lists(st.integers(0, 1), max_size=30)


def reader(tokens):
    return lambda start, stop: FakeBlock(tuple(tokens[start:stop]), stop - start)


def found(cache, tokens, most=None):
    blocks = cache.match(tokens, len(tokens) if most is None else most)
    return [token for block in blocks for token in block.tokens]


@given(st.lists(st.tuples(st.booleans(), texts), max_size=40), st.integers(0, 60))
def test_what_it_finds_is_a_prefix_and_its_books_balance(history, capacity):
    cache = RadixCache(capacity, 1, SIZE)
    for save, tokens in history:
        if save:
            cache.save(tokens, reader(tokens))
        hit = found(cache, tokens)
        assert hit == tokens[: len(hit)]
        if save:
            # Everything before that could go has gone before a block of this text was left out.
            assert len(hit) == min(len(tokens), capacity) // SIZE * SIZE
        cache.check()
        assert cache.nbytes == cache.tokens <= capacity


@given(st.lists(texts, max_size=20))
def test_without_a_tight_budget_it_finds_the_longest_prefix_ever_saved(history):
    cache = RadixCache(10_000, 1, SIZE)
    saved: list[list[int]] = []
    for tokens in history:
        best = 0
        for other in saved:
            n = 0
            while n + SIZE <= min(len(tokens), len(other)) and tokens[n : n + SIZE] == other[n : n + SIZE]:
                n += SIZE
            best = max(best, n)
        assert len(found(cache, tokens)) == best
        cache.save(tokens, reader(tokens))
        saved.append(tokens)


def test_a_block_is_copied_once():
    cache, read = RadixCache(100, 1, SIZE), []

    def reading(tokens):
        def read_block(start, stop):
            read.append(tuple(tokens[start:stop]))
            return FakeBlock(tuple(tokens[start:stop]), stop - start)

        return read_block

    cache.save([1] * 8 + [2] * 4, reading([1] * 8 + [2] * 4))
    cache.save([1] * 8 + [3] * 4, reading([1] * 8 + [3] * 4))
    assert read == [(1,) * 4, (1,) * 4, (2,) * 4, (3,) * 4]


def test_the_least_recently_used_leaf_goes_first():
    cache = RadixCache(4 * SIZE, 1, SIZE)
    head = [9] * SIZE
    old, new = head + [1] * SIZE, head + [2] * SIZE
    cache.save(old, reader(old))
    cache.save(new, reader(new))
    assert found(cache, old) == old  # now `new` is the older one
    other = [5] * (2 * SIZE)
    cache.save(other, reader(other))
    assert found(cache, new) == head
    assert found(cache, old) == old
    assert found(cache, other) == other


def test_a_text_larger_than_the_budget_keeps_its_beginning():
    cache = RadixCache(2 * SIZE, 1, SIZE)
    tokens = list(range(5 * SIZE))
    cache.save(tokens, reader(tokens))
    assert found(cache, tokens) == tokens[: 2 * SIZE]


def test_no_more_is_matched_than_asked_for():
    cache = RadixCache(100, 1, SIZE)
    tokens = list(range(2 * SIZE))
    cache.save(tokens, reader(tokens))
    assert found(cache, tokens, most=2 * SIZE - 1) == tokens[:SIZE]


def test_blocks_larger_than_announced_keep_the_budget_too():
    cache = RadixCache(20, 1, SIZE)
    tokens = list(range(3 * SIZE))
    cache.save(tokens, lambda start, stop: FakeBlock(tuple(tokens[start:stop]), 15))
    cache.check()
    assert found(cache, tokens) == tokens[:SIZE]


def test_check_finds_a_block_that_is_not_in_the_books():
    cache = RadixCache(100, 1, SIZE)
    cache.save([1] * SIZE, reader([1] * SIZE))
    cache.nbytes += 1
    with pytest.raises(AssertionError, match="miscounted"):
        cache.check()


def test_its_null_twin_keeps_nothing():
    cache = NoPrefixCache()
    cache.save([1] * 100, reader([1] * 100))
    assert cache.match([1] * 100, 100) == []
    assert cache.tokens == 0
