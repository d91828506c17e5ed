"""Tokens to text piece by piece is the same as all at once, and stop strings are found wherever they are cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.core.errors import InvalidInput, PackageError
from foretell.llm.text import Detokenizer, StopFinder, Tokenizer, byte_characters
from tests.llm import vocabularies
from tests.llm.vocabularies import TEXTS

INNER = {"byte level": vocabularies.byte_level(), "sentencepiece": vocabularies.sentencepiece()}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: Tokenizer.load(vocabularies.save(inner, folder / name)) for name, inner in INNER.items()}


@pytest.fixture(params=list(INNER))
def pair(request, ours):
    return ours[request.param], INNER[request.param]


def pieces(tokenizer, ids, prompt=()):
    stream = Detokenizer(tokenizer, prompt)
    return [*map(stream.push, ids), stream.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_tokens_that_the_library_gives_it_and_comes_back(pair, text):
    tokenizer, inner = pair
    ids = tokenizer.encode(text, special=False)
    assert ids == inner.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == inner.encode(text).ids
    assert tokenizer.decode(ids) == inner.decode(ids)
    if "<" not in text and not tokenizer.drops_first_space:
        assert tokenizer.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_pieces_join_to_the_decoded_text_and_hold_whole_characters(ours, data):
    tokenizer = ours[data.draw(st.sampled_from(list(INNER)))]
    ids = data.draw(st.lists(st.integers(-1, tokenizer.vocab_size + 3), max_size=40))
    got = pieces(tokenizer, ids)
    assert "".join(got) == tokenizer.decode(ids)
    for piece in got:
        piece.encode()  # half a surrogate pair would raise
    raw = b"".join(tokenizer.token_bytes(i) for i in ids if i not in tokenizer.special_ids)
    if tokenizer.drops_first_space:
        raw = raw.removeprefix(b" ")
    assert "".join(got) == raw.decode(errors="replace")


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40), kind=st.sampled_from(list(INNER)))
def test_valid_text_is_never_shown_with_replacement_characters(ours, text, kind):
    tokenizer = ours[kind]
    ids = tokenizer.encode(text, special=False)
    shown = pieces(tokenizer, ids)
    if "�" not in text:
        assert "�" not in "".join(shown)
    assert "".join(shown) == INNER[kind].decode(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=1, max_size=30), cut=st.integers(0, 60), kind=st.sampled_from(list(INNER)))
def test_a_prompt_that_ends_inside_a_character_or_word_is_continued(ours, text, cut, kind):
    tokenizer = ours[kind]
    ids = tokenizer.encode(text, special=False)
    head, tail = ids[:cut], ids[cut:]
    whole, before = tokenizer.decode(ids), tokenizer.decode(head).rstrip("�")
    if "�" in text or not head:
        return
    assert before + "".join(pieces(tokenizer, tail, head)) == whole


def test_control_tokens_are_not_shown_and_do_not_count_as_a_first_word(ours):
    tokenizer = ours["sentencepiece"]
    ids = tokenizer.encode("Hello <|im_end|>")
    assert tokenizer.decode(ids) == "Hello "
    first = tokenizer.token_id("<s>")
    assert "".join(pieces(tokenizer, tokenizer.encode("Hello", special=False), [first])) == "Hello"
    assert "".join(pieces(tokenizer, tokenizer.encode("fox", special=False), ids)) == " fox"


def test_token_bytes_are_those_in_the_middle_of_a_text(ours):
    tokenizer = ours["sentencepiece"]
    assert tokenizer.token_bytes(tokenizer.token_id("<0xE2>")) == b"\xe2"
    assert tokenizer.token_bytes(tokenizer.token_id("<s>")) == b"<s>"
    assert tokenizer.token_bytes(tokenizer.token_id("▁the")) == b" the"
    assert tokenizer.token_bytes(10**6) == tokenizer.token_bytes(-1) == b""
    assert sorted(ord(c) for c in byte_characters().values()) == sorted(map(ord, byte_characters().values()))
    assert len(set(byte_characters().values())) == 256


def test_half_a_surrogate_pair_is_refused(ours):
    with pytest.raises(InvalidInput, match="surrogate"):
        ours["byte level"].encode("a\ud83d")


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path):
    inner = vocabularies.byte_level()
    inner.enable_truncation(2)
    inner.enable_padding(length=64)
    tokenizer = Tokenizer.load(vocabularies.save(inner, tmp_path))
    assert len(tokenizer.encode("one two three four five")) == len(tokenizer.encode("one two three four five")) > 2
    assert len(tokenizer.encode("one two three four five")) < 64


def test_a_package_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(PackageError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PackageError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)


ALPHABET = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4)


def reference(text, stops):
    """Character by character, no cleverness: the text before the stop that is complete first."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@settings(max_examples=500, deadline=None)
@given(text=ALPHABET, stops=STOPS, cuts=st.lists(st.integers(0, 30), max_size=6))
def test_stops_are_found_wherever_the_pieces_are_cut(text, stops, cuts):
    borders = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    finder, shown = StopFinder(stops), ""
    stopped = False
    for start, end in pairwise(borders):
        piece, stopped = finder.push(text[start:end])
        shown += piece
        if stopped:
            break
        held = text[:end].removeprefix(shown)
        assert held == "" or any(stop.startswith(held) for stop in stops), "held back without need"
    if not stopped:
        shown += finder.flush()
    assert (shown, stopped) == reference(text, stops)


def test_without_stops_nothing_is_held_back():
    finder = StopFinder(())
    assert finder.push("anything") == ("anything", False)
    assert finder.flush() == ""


def test_an_empty_stop_is_refused():
    with pytest.raises(InvalidInput, match="empty"):
        StopFinder(("a", ""))
