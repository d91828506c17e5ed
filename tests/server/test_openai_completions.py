"""/v1/completions by the unchanged openai client: prompts in every form, the old logprobs, streams, refusals."""

import json
import math
import time

import openai
import pytest

from foretell.core.errors import ModelFailed
from foretell.core.generation import Grammar, TokenLogprob
from foretell.server.openai_completions import legacy_logprobs
from foretell.testing import FakeGenerator, FakeModel
from tests.server.models import ODD_PIECES


@pytest.fixture
def client(shared):
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0, timeout=10) as one:
        yield one


@pytest.fixture
def create(client):
    return client.completions.create


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("two words", ["two words"]),
        (["one", "two"], ["one", "two"]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (["one", [5, 6]], ["one", [5, 6]]),
    ],
)
def test_prompts_come_in_every_form(shared, create, prompt, asked):
    shared.plane.generations.clear()
    answer = create(model="chat", prompt=prompt, n=2, max_tokens=3)
    assert [request.prompt for request in shared.plane.generations] == asked
    assert {request.stops.max_tokens for request in shared.plane.generations} == {3}
    assert len({request.id for request in shared.plane.generations}) == len(asked)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    choices = [(c.index, c.text, c.finish_reason) for c in answer.choices]
    assert choices == [(index, "Hello world", "length") for index in range(2 * len(asked))]
    assert answer.usage.completion_tokens == 3 * 2 * len(asked)
    assert answer.usage.prompt_tokens == sum(len(a.split()) if isinstance(a, str) else len(a) for a in asked)


def test_sixteen_tokens_are_the_default_as_clients_know_it(shared, create):
    create(model="chat", prompt="a")
    assert shared.plane.generations[-1].stops.max_tokens == 16


@pytest.mark.parametrize("prompt", ["one", ["one", "two", "three"]])
def test_a_stream_brings_the_pieces_of_all_prompts(create, prompt):
    texts, reasons = {}, {}
    for chunk in create(model="odd-chat", prompt=prompt, n=2, stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "text_completion"
        last = chunk
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason
    count = 2 * (1 if isinstance(prompt, str) else len(prompt))
    assert texts == dict.fromkeys(range(count), "".join(ODD_PIECES))
    assert reasons == dict.fromkeys(range(count), "stop")
    assert last.usage.completion_tokens == count * len(ODD_PIECES)


def test_echo_repeats_the_prompt(create):
    assert create(model="chat", prompt="Well. ", echo=True).choices[0].text == "Well. Hello world!"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_have_the_old_shape(create, stream):
    answer = create(model="chat", prompt="a", logprobs=2, stream=stream)
    if stream:
        told = [chunk.choices[0].logprobs for chunk in answer if chunk.choices[0].logprobs]
    else:
        told = [answer.choices[0].logprobs]
    assert [token for each in told for token in each.tokens] == ["Hello", " wor", "ld", "!"]
    assert [value for each in told for value in each.token_logprobs] == [-0.5] * 4
    assert [offset for each in told for offset in each.text_offset] == [0, 5, 9, 11]
    assert [top for each in told for top in each.top_logprobs][:2] == [
        {"Hello": -0.5, "Hello1": -1.5},
        {" wor": -0.5, " wor1": -1.5},
    ]


def test_a_probability_of_nothing_is_a_number():
    told = [TokenLogprob(2, "b", b"b", -math.inf, [(3, b"c", -0.1), (4, b"b", -math.inf)])]
    logprobs = legacy_logprobs(told, 10)
    assert logprobs.token_logprobs == [-9999.0]
    assert logprobs.top_logprobs == [{"c": -0.1, "b": -9999.0}]
    assert logprobs.text_offset == [10]


def test_formats_work_here_too(shared, create):
    create(model="chat", prompt="a", extra_body={"structured_outputs": {"regex": "a+"}})
    assert shared.plane.generations[-1].grammar == Grammar("regex", "a+")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt[0]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [5, -1]}, "prompt[1]"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": ["a"] * 600, "n": 2}, "prompt"),
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": [""]}, "stop[0]"),
        ({"n": 0}, "n"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(create, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="chat", prompt=fields.pop("prompt", "a"), extra_body=fields)
    assert caught.value.param == param
    assert f"$.{param}" in caught.value.message


def test_an_empty_suffix_and_a_best_of_that_changes_nothing_are_taken(create):
    assert create(model="chat", prompt="a", extra_body={"suffix": "", "best_of": 1}).choices[0].text == "Hello world!"


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_a_stream_that_fails_ends_with_an_error_event(create, prompt):
    with pytest.raises(openai.APIError, match="the replica died"):
        list(create(model="breaks", prompt=prompt, stream=True))


def test_the_failure_of_one_prompt_cancels_the_others(live):
    live.plane.served += [FakeModel("half", generator=_Half(("x",) * 9, delay_s=0.2))]
    response = live.call(lambda: _post(live.app, {"model": "half", "prompt": ["bad", "good", "good"]}))
    assert response.status == 500
    assert live.plane.cancelled == 2


class _Half(FakeGenerator):
    def events(self, request):
        return [ModelFailed("no")] if request.prompt == "bad" else super().events(request)


def _post(app, document):
    from foretell.testing import client as in_process

    return in_process(app).post("/v1/completions", document)


def test_a_client_that_leaves_cancels_all_its_prompts(live):
    body = json.dumps({"model": "stuck", "prompt": ["a", "b", "c"], "stream": True}).encode()
    with live.connect() as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        while len(live.plane.generations) < 3:
            time.sleep(0.005)
    until = time.monotonic() + 5
    while live.plane.cancelled < 3:
        assert time.monotonic() < until
        time.sleep(0.005)
