"""Streams are read the same whatever pieces they come in; what is no answer is an error by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.bench.llm.events import AnswerReader, EventReader, NoText
from foretell.bench.load import RequestFailed

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}


def sse(*values) -> bytes:
    return b"".join(b"data: " + (v if isinstance(v, bytes) else json.dumps(v).encode()) + b"\n\n" for v in values)


def text(said, **more):
    return {"choices": [{"index": 0, "text": said, "finish_reason": None, **more}]}


def chat(**delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def read(*values):
    reader = AnswerReader(10.0)
    for n, value in enumerate(values):
        reader.feed(11.0 + n, sse(value))
    return reader.answer()


@given(
    st.lists(st.binary().filter(lambda b: not set(b"\r\n") & set(b) and not b.startswith(b" ")), max_size=8), st.data()
)
def test_events_are_the_same_in_whatever_pieces_they_come(payloads, data):
    end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    stream = b"".join(b": note" + end + b"event: x" + end + b"data: " + p + end + end for p in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader, found = EventReader(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:stop])
    assert found == payloads


def test_several_data_lines_are_one_event():
    assert EventReader().feed(b"data: a\ndata:b\n\n") == [b"a\nb"]


def test_a_completion_is_its_times_and_the_servers_counts():
    answer = read(text("a"), text("b"), text("", finish_reason="length"), {"choices": [], "usage": USAGE}, b"[DONE]")
    assert answer.times == [1.0, 2.0]
    assert (answer.tokens, answer.prompt_tokens, answer.cached_tokens, answer.counted) == (4, 9, 3, True)


@pytest.mark.parametrize("key", ["content", "reasoning_content", "reasoning"])
def test_the_first_token_of_a_chat_is_the_first_that_says_something(key):
    answer = read(chat(role="assistant", content=""), chat(content=None), chat(**{key: "hi"}), b"[DONE]")
    assert answer.times == [3.0]


def test_a_tool_call_is_something_said():
    call = {"index": 0, "function": {"name": "f", "arguments": "{"}}
    assert read(chat(tool_calls=[call]), b"[DONE]").times == [1.0]


def test_without_usage_every_piece_is_one_token_and_the_answer_says_so():
    answer = read(text("a"), text("b"), b"[DONE]")
    assert (answer.tokens, answer.counted, answer.prompt_tokens) == (2, False, 0)


def test_a_usage_that_is_null_until_the_end_is_taken_from_the_end():
    answer = read({**text("a"), "usage": None}, {"choices": [], "usage": USAGE}, b"[DONE]")
    assert answer.tokens == 4


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([text("a")], "cut off"),
        ([text("a"), {"error": {"message": "x"}}], "error in the stream"),
        ([text("a"), b"{]"], "malformed"),
        ([text("a"), {"choices": 3}], "malformed"),
    ],
)
def test_a_stream_that_breaks_is_a_failure_by_name(values, says):
    with pytest.raises(RequestFailed, match=says):
        read(*values)


def test_an_answer_without_text_is_a_failure_of_its_own():
    with pytest.raises(NoText):
        read(text("", finish_reason="stop"), b"[DONE]")
