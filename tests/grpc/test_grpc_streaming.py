"""ModelStreamInfer: order, bounded concurrency, errors that end one answer and not the stream."""

import asyncio
import queue
from collections.abc import AsyncIterator

import pytest
import tritonclient.grpc as blocking

from foretell.core.reference import Reference
from foretell.core.request import Request, Response
from foretell.testing import FakePlane
from tests.grpc.models import pixels


async def questions(*rows: list[float], model: str = "digits", **extra) -> AsyncIterator[dict]:
    for number, row in enumerate(rows):
        yield {"model_name": model, "inputs": pixels(row), "request_id": str(number), **extra}


async def test_every_request_of_a_stream_is_answered_in_order(client):
    rows = [[n, 0, 0, 0] for n in range(50)]
    answers = [pair async for pair in client.stream_infer(questions(*rows))]
    assert [error for _, error in answers] == [None] * 50
    assert [result.as_numpy("total").tolist() for result, _ in answers] == [[float(n)] for n in range(50)]
    assert [result.get_response().id for result, _ in answers] == [str(n) for n in range(50)]


async def test_an_error_answers_its_request_and_the_stream_goes_on(client):
    async def mixed() -> AsyncIterator[dict]:
        for model in ("digits", "nothing", "poison", "bug", "digits"):
            yield {"model_name": model, "inputs": pixels(), "request_id": model}

    answers = [pair async for pair in client.stream_infer(mixed())]
    messages = [None if error is None else error.message() for _, error in answers]
    assert messages[0] is None
    assert messages[1].startswith('no model "nothing" is served here.')
    assert messages[2] == 'model "poison" raised ValueError: bad row'
    assert messages[3].startswith("internal error (ZeroDivisionError)")
    assert messages[4] is None


async def test_no_more_than_the_window_runs_at_once(client, plane: FakePlane, settings):
    running = most = 0
    infer = plane.infer

    async def counted(reference: Reference, request: Request) -> Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        # The first are the slowest: answers come back in the order of the questions all the same.
        await asyncio.sleep(0.05 / (1 + float(request.inputs["pixels"][0, 0])))
        running -= 1
        return await infer(reference, request)

    plane.infer = counted
    rows = [[n, 0, 0, 0] for n in range(20)]
    answers = [result async for result, _ in client.stream_infer(questions(*rows))]
    assert [a.as_numpy("total").tolist() for a in answers] == [[float(n)] for n in range(20)]
    assert 1 < most <= settings.stream_window


async def test_a_client_that_leaves_its_stream_cancels_what_runs(client, plane: FakePlane):
    stream = client.stream_infer(questions(*([[1, 2, 3, 4]] * 3), model="slow"))

    async def read() -> None:
        async for _ in stream:
            pass

    reading = asyncio.create_task(read())
    while len(plane.requests) < 3:
        await asyncio.sleep(0.01)
    stream.cancel()
    while plane.cancelled < 3:
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_the_blocking_client_streams_and_gets_the_final_mark_it_asks_for(server):
    def ask() -> tuple[list[float], bool]:
        answers: queue.Queue = queue.Queue()
        with blocking.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            client.start_stream(lambda result, error: answers.put(error or result))
            client.async_stream_infer("digits", pixels(), enable_empty_final_response=True)
            result = answers.get(timeout=10)
            client.stop_stream()
        return result.as_numpy("total").tolist(), result.get_response().parameters["triton_final_response"].bool_param

    assert await asyncio.to_thread(ask) == ([10.0], True)


async def test_timeouts_hold_inside_a_stream(client):
    async def asked() -> AsyncIterator[dict]:
        yield {"model_name": "slow", "inputs": pixels(), "timeout": 10_000}
        yield {"model_name": "digits", "inputs": pixels()}

    (_, first), (second, none) = [pair async for pair in client.stream_infer(asked())]
    assert "deadline" in first.message()
    assert none is None
    assert second.as_numpy("total").tolist() == [10.0]
