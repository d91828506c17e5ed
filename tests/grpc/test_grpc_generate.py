"""ModelStreamInfer on a model that generates: one request, many responses, as Triton's decoupled models have them."""

import asyncio
import queue

import numpy as np
import pytest
import tritonclient.grpc as blocking
import tritonclient.grpc.aio as triton

from foretell.core.errors import ModelFailed
from foretell.testing import FakeGenerator, FakeModel
from tests.grpc.models import pixels

FINAL = "triton_final_response"


@pytest.fixture
def plane(plane):
    plane.served += [
        FakeModel("chat", generator=FakeGenerator(("Hé", "", "llo", "!"))),
        FakeModel("slow-chat", generator=FakeGenerator(("a", "b", "c"), delay_s=0.05)),
        FakeModel("stuck", generator=FakeGenerator(("never",), delay_s=60.0)),
        FakeModel("breaks", generator=FakeGenerator(("so", "far"), error=ModelFailed("it died"), fails_at=1)),
    ]
    return plane


def text(name: str, value: str | bytes) -> triton.InferInput:
    tensor = triton.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value if isinstance(value, bytes) else value.encode()], dtype=object))
    return tensor


def flag(name: str, value: bool) -> triton.InferInput:
    tensor = triton.InferInput(name, [1], "BOOL")
    tensor.set_data_from_numpy(np.array([value]))
    return tensor


async def answers(client, *requests: dict) -> list:
    async def asked():
        for request in requests:
            yield {"model_name": "chat", "inputs": [text("text_input", "hi there")], **request}

    return [pair async for pair in client.stream_infer(asked())]


def said(pairs, name: str = "") -> list[str]:
    texts = [r.as_numpy("text_output") for r, _ in pairs if r.get_response().id == name]
    return [array[0].decode() for array in texts if array is not None]


async def test_text_comes_in_pieces(client):
    pairs = await answers(client, {"request_id": "7"})
    assert said(pairs, "7") == ["Hé", "llo", "!"]
    response = pairs[0][0].get_response()
    assert (response.model_name, response.model_version) == ("chat", "1")
    assert [pair[0].get_response().parameters[FINAL].bool_param for pair in pairs] == [False] * 3


async def test_stream_false_brings_one_response(client):
    pairs = await answers(client, {"inputs": [text("text_input", "hi"), flag("stream", False)]})
    assert said(pairs) == ["Héllo!"]


async def test_inputs_and_parameters_say_how_to_generate(client, plane):
    tokens = triton.InferInput("max_tokens", [1], "INT32")
    tokens.set_data_from_numpy(np.array([2], dtype=np.int32))
    inputs = [text("text_input", "hi"), tokens, text("sampling_parameters", '{"top_k": 4}')]
    pairs = await answers(client, {"inputs": inputs, "parameters": {"temperature": 0.5, "seed": 3}, "priority": 2})
    assert said(pairs) == ["Hé"]
    (request,) = plane.generations
    assert (request.sampling.temperature, request.sampling.seed, request.sampling.top_k) == (0.5, 3, 4)
    assert (request.stops.max_tokens, request.priority, request.protocol) == (2, 2, "grpc")


async def test_several_generations_of_one_stream_run_at_once(client):
    pairs = await answers(
        client,
        {"model_name": "slow-chat", "request_id": "a"},
        {"model_name": "slow-chat", "request_id": "b"},
        {"model_name": "digits", "inputs": pixels(), "request_id": "c"},
    )
    order = [r.get_response().id for r, _ in pairs]
    assert said(pairs, "a") == said(pairs, "b") == ["a", "b", "c"]
    assert order.index("b") < 3
    assert order.count("c") == 1


@pytest.mark.parametrize(
    ("request_fields", "words"),
    [
        ({"model_name": "breaks"}, "it died"),
        ({"parameters": {"temperature": 9.0}}, "$.temperature"),
        ({"parameters": {"colour": "red"}}, "colour"),
        ({"inputs": [text("text_input", b"\xff")]}, "UTF-8"),
        ({"inputs": [text("text_input", "")]}, "$.text_input"),
        ({"inputs": [text("text_input", "hi"), text("sampling_parameters", "[")]}, "$.sampling_parameters"),
        ({"model_name": "slow-chat", "timeout": 20_000}, "deadline"),
    ],
)
async def test_an_error_answers_its_request_and_the_stream_goes_on(client, request_fields, words):
    pairs = await answers(client, {**request_fields, "request_id": "bad"}, {"request_id": "good"})
    errors = [error.message() for _, error in pairs if error is not None]
    assert len(errors) == 1
    assert words in errors[0]
    good = [r for r, error in pairs if error is None and r.get_response().id == "good"]
    assert len(good) == 3


async def test_more_than_one_prompt_in_a_request_is_refused(client):
    two = triton.InferInput("text_input", [2], "BYTES")
    two.set_data_from_numpy(np.array([b"a", b"b"], dtype=object))
    ((_, error),) = await answers(client, {"inputs": [two]})
    assert "one prompt" in error.message()


async def test_a_client_that_leaves_its_stream_cancels_what_runs(client, plane):
    async def asked():
        for _ in range(3):
            yield {"model_name": "stuck", "inputs": [text("text_input", "hi")]}

    stream = client.stream_infer(asked())
    reading = asyncio.create_task(anext(aiter(stream)))
    while len(plane.generations) < 3:
        await asyncio.sleep(0.01)
    stream.cancel()
    while plane.cancelled < 3:
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_the_blocking_client_streams_up_to_the_empty_last_response_it_asks_for(server):
    def ask() -> list[str]:
        got: queue.Queue = queue.Queue()
        tensor = blocking.InferInput("text_input", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([b"hi"], dtype=object))
        texts = []
        with blocking.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            client.start_stream(lambda result, error: got.put(error or result))
            client.async_stream_infer("chat", [tensor], enable_empty_final_response=True)
            while True:
                result = got.get(timeout=10)
                if result.get_response().parameters.get(FINAL).bool_param:
                    assert len(result.get_response().outputs) == 0
                    break
                texts.append(result.as_numpy("text_output")[0].decode())
            client.stop_stream()
        return texts

    assert await asyncio.to_thread(ask) == ["Hé", "llo", "!"]
