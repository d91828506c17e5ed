"""Triton's generate extension over plain HTTP: whole answers, server-sent events, nested parameters, refusals."""

import http.client
import json
import time

import pytest

from foretell.core.generation import Grammar
from tests.server.models import ODD_PIECES


@pytest.fixture
def ask(shared):
    """Post a document to a model's generate or generate_stream; the status, and the body or events."""

    def post(document, path="chat/generate", raw=None):
        connection = http.client.HTTPConnection(shared.address, timeout=10)
        connection.request("POST", f"/v2/models/{path}", json.dumps(document) if raw is None else raw)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        if response.getheader("content-type") != "text/event-stream":
            return response.status, json.loads(body)
        events = body.decode().split("\n\n")
        assert events.pop() == ""
        return response.status, [json.loads(event.removeprefix("data: ")) for event in events]

    return post


def test_generate_answers_once(ask):
    status, answer = ask({"text_input": "hi", "id": "7"})
    assert status == 200
    assert answer == {"id": "7", "model_name": "chat", "model_version": "1", "text_output": "Hello world!"}
    assert ask({"text_input": "hi"}, "chat/versions/1/generate")[1]["text_output"] == "Hello world!"


def test_generate_stream_answers_in_pieces(ask):
    status, events = ask({"text_input": "hi", "id": "7", "stream": True}, "odd-chat/generate_stream")
    assert status == 200
    assert [event["text_output"] for event in events] == [piece for piece in ODD_PIECES if piece]
    assert {(event["id"], event["model_name"], event["model_version"]) for event in events} == {("7", "odd-chat", "1")}


def test_generate_stream_without_stream_answers_once(ask):
    _, (event,) = ask({"text_input": "hi", "parameters": {"stream": False}}, "odd-chat/generate_stream")
    assert event["text_output"] == "".join(ODD_PIECES)


def test_fields_stand_at_the_top_in_parameters_or_in_sampling_parameters(ask, shared):
    status, _ = ask(
        {
            "text_input": "hi",
            "temperature": 0.3,
            "parameters": {"max_tokens": 3, "temperature": 0.9, "seed": 4, "timeout": 9_000_000, "sticky": "ann"},
            "sampling_parameters": '{"top_k": 5, "seed": 9, "logit_bias": {"3": 1}, "guided_regex": "a"}',
        }
    )
    assert status == 200
    request = shared.plane.generations[-1]
    assert request.prompt == "hi"
    assert (request.sampling.temperature, request.sampling.seed, request.sampling.top_k) == (0.3, 4, 5)
    assert request.sampling.logit_bias == {3: 1.0}
    assert request.stops.max_tokens == 3
    assert request.grammar == Grammar("regex", "a")
    assert (request.protocol, request.sticky) == ("rest", "ann")
    assert 0 < request.deadline - time.monotonic() <= 9


def test_the_prompt_is_repeated_on_demand(ask):
    assert ask({"text_input": "Hm. ", "exclude_input_in_output": False})[1]["text_output"] == "Hm. Hello world!"


def test_a_failure_in_mid_stream_is_an_event(ask):
    status, events = ask({"text_input": "hi"}, "breaks/generate_stream")
    assert status == 200
    assert events[-1] == {"error": "the replica died"}
    assert "unexpected error" in ask({"text_input": "hi"}, "buggy/generate_stream")[1][-1]["error"]


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("model", "document", "status", "words"),
    [
        ("nobody", {"text_input": "hi"}, 404, "nobody"),
        ("double", {"text_input": "hi"}, 400, "does not generate"),
        ("refuses", {"text_input": "hi"}, 400, "9,000 tokens"),
        ("full", {"text_input": "hi"}, 429, "retry"),
        ("chat", {}, 400, "text_input"),
        ("chat", {"text_input": ""}, 400, "$.text_input"),
        ("chat", {"text_input": ["a"]}, 400, "$.text_input"),
        ("chat", {"text_input": "hi", "temperature": 9}, 400, "$.temperature"),
        ("chat", {"text_input": "hi", "max_tokens": 0}, 400, "$.max_tokens"),
        ("chat", {"text_input": "hi", "temprature": 1}, 400, 'Did you mean "temperature"'),
        ("chat", {"text_input": "hi", "parameters": {"topk": 1}}, 400, "$.parameters.topk"),
        ("chat", {"text_input": "hi", "parameters": [1]}, 400, "$.parameters"),
        ("chat", {"text_input": "hi", "sampling_parameters": "{"}, 400, "$.sampling_parameters"),
        ("chat/versions/x", {"text_input": "hi"}, 404, "version"),
    ],
)
def test_bad_requests_are_refused_with_the_place(ask, path, model, document, status, words):
    got, body = ask(document, f"{model}/{path}")
    assert got == status
    assert words in body["error"]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"text_input": "\xff"}'])
def test_bodies_that_are_no_requests_are_refused(ask, raw):
    status, body = ask(None, raw=raw)
    assert status == 400
    assert body["error"]


def test_generate_does_not_stream(ask):
    status, body = ask({"text_input": "hi", "stream": True})
    assert (status, "generate_stream" in body["error"]) == (400, True)


def test_refusals_are_observed(ask, shared):
    shared.plane.refusals.clear()
    ask({"text_input": ""})
    assert len(shared.plane.refusals) == 1
