"""/v1/chat/completions by the unchanged openai client, blocking and async, whole and streamed; and what it refuses."""

import asyncio
import json
import time

import openai
import pytest

from foretell.core.generation import Chat, Grammar
from tests.server.models import ODD_PIECES

HI = [{"role": "user", "content": "say hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}


@pytest.fixture
def client(shared):
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0, timeout=10) as one:
        yield one


@pytest.fixture
def create(client):
    return client.chat.completions.create


@pytest.fixture
def asked(shared, create):
    """What the plane was asked when a chat is sent with these fields."""

    def ask(**fields):
        create(**{"model": "chat", "messages": HI, **fields})
        return shared.plane.generations[-1]

    return ask


def test_an_answer_comes_whole_with_its_usage(create):
    answer = create(model="chat", messages=HI)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "chat"
    assert abs(answer.created - time.time()) < 60
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello world!", "stop")
    assert choice.message.tool_calls is None
    assert choice.logprobs is None
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 4, 6)
    assert usage.prompt_tokens_details.cached_tokens == 1


def test_a_stream_brings_role_pieces_reason_and_usage(create):
    chunks = list(create(model="chat", messages=HI, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.content for c in chunks[1:-2]] == ["Hello", " wor", "ld", "!"]
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * 5 + ["stop"]
    assert [c.usage for c in chunks[:-1]] == [None] * 6
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (2, 4)


def test_without_being_asked_a_stream_tells_no_usage(create):
    chunks = list(create(model="chat", messages=HI, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_any_text_survives_the_stream(create):
    chunks = list(create(model="odd-chat", messages=HI, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "".join(ODD_PIECES)
    assert create(model="odd-chat", messages=HI).choices[0].message.content == "".join(ODD_PIECES)


def test_n_choices_come_together_and_interleaved(create):
    assert [c.message.content for c in create(model="chat", messages=HI, n=3).choices] == ["Hello world!"] * 3
    texts = ["", "", ""]
    for chunk in create(model="chat", messages=HI, n=3, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
    assert texts == ["Hello world!"] * 3


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_tell_tokens_bytes_and_runners_up(create, stream):
    answer = create(model="odd-chat", messages=HI, logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        told = [c.choices[0].logprobs.content for c in answer if c.choices[0].logprobs]
        tokens = [token for content in told for token in content]
    else:
        tokens = answer.choices[0].logprobs.content
    assert [token.token for token in tokens] == list(ODD_PIECES)
    assert bytes(tokens[2].bytes).decode() == ODD_PIECES[2]
    assert [top.logprob for top in tokens[0].top_logprobs] == [-0.5, -1.5]
    assert tokens[0].logprob == -0.5


def test_logprobs_without_runners_up(create):
    (choice,) = create(model="chat", messages=HI, logprobs=True).choices
    assert [len(token.top_logprobs) for token in choice.logprobs.content] == [0] * 4


def test_tools_are_called(create):
    answer = create(model="calls", messages=HI, tools=[WEATHER])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = choice.message.tool_calls
    assert [(c.type, c.function.name, c.function.arguments) for c in calls] == [
        ("function", "weather", '{"city": "Paris"}'),
        ("function", "time", "{}"),
    ]
    assert len({c.id for c in calls}) == 2


def test_tools_are_called_in_a_stream(client, create):
    calls = {}
    for chunk in create(model="calls", messages=HI, tools=[WEATHER], stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            calls[call.index] = (call.id, call.function.name, call.function.arguments)
    assert [(name, arguments) for _, name, arguments in calls.values()] == [
        ("weather", '{"city": "Paris"}'),
        ("time", "{}"),
    ]
    with client.chat.completions.stream(model="calls", messages=HI, tools=[WEATHER]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.tool_calls[0].function.arguments == '{"city": "Paris"}'


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (openai.NOT_GIVEN, "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "weather"}}, "name:weather"),
    ],
)
def test_the_tool_choice_reaches_the_model(asked, given, told):
    chat = asked(tools=[WEATHER], tool_choice=given).prompt
    assert isinstance(chat, Chat)
    assert (chat.messages, chat.tools, chat.tool_choice) == (HI, [WEATHER], told)


def test_every_sampling_field_reaches_the_model(asked):
    request = asked(
        temperature=0.5, top_p=0.9, presence_penalty=1, frequency_penalty=-1, logit_bias={"7": -100}, seed=-5,
        max_completion_tokens=9, max_tokens=3, stop=["a", "b"], n=2, user="ann",
        extra_body={
            "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2, "ignore_eos": True,
            "stop_token_ids": [5], "priority": -1, "chat_template_kwargs": {"enable_thinking": False},
            "some_field_of_tomorrow": {"x": 1},
        },
    )  # fmt: skip
    sampling, stops = request.sampling, request.stops
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, 1, -1)
    assert (sampling.logit_bias, sampling.seed) == ({7: -100.0}, -5)
    assert (stops.max_tokens, stops.min_tokens, stops.stop) == (9, 2, ("a", "b"))
    assert (stops.stop_token_ids, stops.ignore_eos) == ((5,), True)
    assert (request.n, request.sticky, request.priority, request.protocol) == (2, "ann", -1, "openai")
    assert request.prompt.template_arguments == {"enable_thinking": False}
    assert request.logprobs == -1
    assert request.grammar is None


def test_null_means_not_given(asked):
    nulls = dict.fromkeys(
        ("temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n", "stream", "tools",
         "tool_choice", "response_format", "logprobs", "top_logprobs", "logit_bias", "stream_options", "user",
         "presence_penalty", "frequency_penalty", "functions")
    )  # fmt: skip
    request = asked(extra_body=nulls)
    assert (request.sampling.temperature, request.stops.max_tokens, request.n) == (None, None, 1)


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            Grammar("json_schema", json.dumps(SCHEMA, separators=(",", ":"))),
        ),
        ({"structured_outputs": {"regex": "[a-z]+"}}, Grammar("regex", "[a-z]+")),
        ({"structured_outputs": {"grammar": 'start: "x"'}}, Grammar("lark", 'start: "x"')),
        ({"structured_outputs": {"choice": ["yes", 'a "b"\n']}}, Grammar("lark", 'start: "yes" | "a \\"b\\"\\n"')),
        ({"structured_outputs": {"json": '{"type":"array"}'}}, Grammar("json_schema", '{"type":"array"}')),
        ({"structured_outputs": {"json_object": True}}, Grammar("json")),
        ({"guided_regex": "a|b"}, Grammar("regex", "a|b")),
        ({"guided_grammar": "start: /x/"}, Grammar("lark", "start: /x/")),
        ({"guided_json": {"type": "null"}}, Grammar("json_schema", '{"type":"null"}')),
        ({"guided_choice": ["a"]}, Grammar("lark", 'start: "a"')),
        ({"guided_regex": None, "response_format": None}, None),
    ],
)
def test_the_format_of_the_answer_becomes_a_grammar(asked, fields, grammar):
    assert asked(extra_body=fields).grammar == grammar


async def test_the_async_client_runs_many_streams_at_once(shared):
    async with openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0) as client:

        async def one() -> str:
            stream = await client.chat.completions.create(model="chat", messages=HI, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert await asyncio.gather(*(one() for _ in range(16))) == ["Hello world!"] * 16


def test_the_clients_request_id_goes_along(asked):
    assert asked(extra_headers={"x-request-id": "mine"}).id == "mine"
    assert asked().id.startswith("chatcmpl-")


# -- what goes wrong


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logit_bias": {"7": 101}}, "logit_bias[...]"),
        ({"logit_bias": {"seven": 1}}, "logit_bias"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "whether"}}},
            "tool_choice.function.name",
        ),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(create, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="chat", messages=fields.pop("messages", HI), extra_body=fields)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == param
    assert f"$.{param}" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("nobody", openai.NotFoundError, "nobody"),
        ("double", openai.BadRequestError, "does not generate"),
        ("refuses", openai.BadRequestError, "9,000 tokens"),
        ("full", openai.RateLimitError, "retry later"),
        ("", openai.BadRequestError, "reference"),
    ],
)
def test_a_request_that_cannot_run_has_a_status_of_its_own_also_when_streamed(create, model, error, words, stream):
    with pytest.raises(error, match=words):
        create(model=model, messages=HI, stream=stream)


def test_what_is_too_long_is_told_by_the_code_that_clients_know(create):
    with pytest.raises(openai.BadRequestError, match="9,000") as caught:
        create(model="too-small", messages=HI)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(("model", "words"), [("breaks", "the replica died"), ("buggy", "unexpected error")])
def test_a_stream_that_fails_ends_with_an_error_event(create, model, words):
    chunks = iter(create(model=model, messages=HI, stream=True))
    assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["", "so"]
    with pytest.raises(openai.APIError, match=words) as caught:
        list(chunks)
    assert caught.value.type == "server_error"


def test_after_its_error_event_a_stream_ends_and_the_connection_lives(shared):
    request = json.dumps({"model": "breaks", "messages": HI, "stream": True}).encode()
    with shared.connect() as sock:
        for _ in range(2):
            sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(request))
            sock.sendall(request)
            got = b""
            while not got.endswith(b"0\r\n\r\n"):
                got += sock.recv(65536)
            assert got.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"content-type: text/event-stream\r\n" in got
            assert b"the replica died" in got
            assert got.index(b"[DONE]") > got.index(b"the replica died")


@pytest.mark.parametrize("model", ["breaks", "buggy"])
def test_an_answer_that_fails_is_a_server_error(create, model):
    with pytest.raises(openai.InternalServerError):
        create(model=model, messages=HI)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b'{"model":"chat"}', b'{"model":"chat","messages":"\xff"}'])
async def test_bodies_that_are_no_requests_are_refused(http, raw):
    response = await http.request("POST", "/v1/chat/completions", raw)
    assert response.status == 400
    assert json.loads(response.body)["error"]["type"] == "invalid_request_error"


# -- clients that leave


def left(plane, before: int) -> float:
    """Seconds until the plane notices that a client went away."""
    began = time.monotonic()
    while plane.cancelled == before:
        assert time.monotonic() - began < 5
        time.sleep(0.005)
    return time.monotonic() - began


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_nothing_is_written_cancels_its_request(live, stream):
    request = json.dumps({"model": "stuck", "messages": HI, "stream": stream}).encode()
    with live.connect() as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(request))
        sock.sendall(request)
        while not live.plane.generations:
            time.sleep(0.005)
        got = b""
        while stream and b"assistant" not in got:
            got += sock.recv(65536)
        assert live.plane.cancelled == 0
    left(live.plane, 0)


def test_the_openai_client_cancels_by_closing_its_stream(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model="slow-chat", messages=HI, stream=True)
        next(iter(stream))
        stream.close()
    left(live.plane, 0)


async def test_the_async_client_cancels_by_cancelling_its_task(live):
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        asking = asyncio.create_task(client.chat.completions.create(model="stuck", messages=HI))
        while not live.plane.generations:
            await asyncio.sleep(0.005)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    await asyncio.to_thread(left, live.plane, 0)
