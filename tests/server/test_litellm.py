"""litellm, unchanged, against /v1: whole, streamed, with tools; its own errors for ours."""

import json

import openai
import pytest

litellm = pytest.importorskip(
    "litellm", reason="litellm is not installed; it wants an openai below 3, so give it an environment of its own"
)

HI = [{"role": "user", "content": "say hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def ask(shared):
    def completion(model="chat", **fields):
        return litellm.completion(
            model=f"openai/{model}", messages=HI, api_base=f"{shared.url}/v1", api_key="none", num_retries=0,
            timeout=10, **fields,
        )  # fmt: skip

    return completion


def test_an_answer_comes_whole(ask):
    answer = ask(temperature=0.5, max_tokens=9, stop=["x"])
    assert answer.choices[0].message.content == "Hello world!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 4


def test_an_answer_comes_in_pieces_with_usage(ask):
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello world!"
    whole = litellm.stream_chunk_builder(chunks, messages=HI)
    assert whole.usage.completion_tokens == 4


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called(ask, stream):
    answer = ask("calls", tools=[WEATHER], stream=stream)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=HI)
    (first, second) = answer.choices[0].message.tool_calls
    assert (first.function.name, json.loads(first.function.arguments)) == ("weather", {"city": "Paris"})
    assert second.function.name == "time"
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_schema_goes_along(ask, shared):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    ask(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert json.loads(shared.plane.generations[-1].grammar.text) == schema


def test_text_completions_work(shared):
    answer = litellm.text_completion(
        model="text-completion-openai/chat", prompt="hi", api_base=f"{shared.url}/v1", api_key="none", num_retries=0
    )
    assert answer.choices[0].text == "Hello world!"


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("nobody", litellm.NotFoundError),
        ("refuses", litellm.BadRequestError),
        ("full", litellm.RateLimitError),
        ("breaks", litellm.InternalServerError),
    ],
)
def test_errors_are_litellms_own(ask, model, error):
    with pytest.raises(error):
        ask(model)


def test_a_stream_that_fails_raises(ask):
    with pytest.raises(openai.APIError, match="the replica died"):
        list(ask("breaks", stream=True))
