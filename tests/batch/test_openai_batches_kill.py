"""A server with a batch is stopped or killed, and started again: every call has one answer. And whoever asks online
does not wait for a batch.
"""

import asyncio
import os
import signal
import time

import numpy as np
import pytest

from foretell.app.background import BEHIND, FEW, Background
from foretell.cli.child import ChildServer
from foretell.core.errors import NotReady, Overloaded, ReplicaCrashed
from foretell.core.observation import Observation, TokenUse
from foretell.core.reference import parse_reference
from foretell.core.request import Request
from foretell.server.openai import Calls
from foretell.testing import FakeGenerator, FakeModel, FakePlane
from tests.batch.calls import CHAT, COMPLETIONS, EMBED, EMBEDDINGS, TEXTS, Helper, Served, add_talk, call, calls
from tests.batch.conftest import World
from tests.fleet.scripted import launch_scripted
from tests.server.models import models

COUNT = 240
NOTED = """
import os, time
def predict(text):
    time.sleep(0.02)
    with open(os.environ["NOTES"], "ab") as notes:
        notes.write(b"\\n".join(text) + b"\\n")
    return {"vector": np.array([[len(each), 1.0] for each in text], np.float32)}
"""


@pytest.fixture
def served(world: World, monkeypatch):
    """Starts servers of "embed", which notes each text that it is asked, in processes of their own."""
    world.add_python("embed", NOTED, TEXTS)
    world.store.close()
    notes = world.folder / "notes"
    notes.touch()
    config = world.folder / "foretell.toml"
    config.write_text("[models.embed]\nbatching = {max_batch_size = 4}\nreplicas = {count = 1, threads = 1}\n")
    arguments = ["embed", "--port", "0", "--grpc-port", "-1", "--access-log", "none", "--trust-code"]
    arguments += ["--store", str(world.folder / "home"), "--config", str(config)]
    running: list[ChildServer] = []

    def start() -> ChildServer:
        running.append(ChildServer(arguments, {"NOTES": str(notes)}).wait())
        return running[-1]

    start.notes = notes
    yield start
    for server in running:
        server.stop(5.0)


@pytest.mark.slow
def test_killed_again_and_again_every_call_has_one_answer(served):
    server = served()
    asking = Helper(server.url)
    texts = [f"{number:04d}" + "x" * (number % 7) for number in range(COUNT)]
    bad = [call(f"bad{number}", input=[]) for number in range(3)]
    batch = asking.create([*calls(texts), *bad])
    for done in (20, 100):
        asking.until(batch, "in_progress", done=done)
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
        server = served()
        asking = Helper(server.url)
    batch = asking.until(batch)
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": COUNT + 3, "completed": COUNT, "failed": 3}
    lines = asking.lines(batch.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"c{number}" for number in range(COUNT)]
    answers = [line["response"]["body"]["data"][0]["embedding"][0] for line in lines]
    assert answers == [len(text) for text in texts]
    assert [line["custom_id"] for line in asking.lines(batch.error_file_id)] == ["bad0", "bad1", "bad2"]
    asked = served.notes.read_text().split()
    assert set(asked) == set(texts)
    assert len(asked) < 2 * COUNT, "what was answered before a kill is not asked again"


def test_a_stopped_server_gives_its_batch_back_at_once(world):
    world.add_python("embed", EMBED, TEXTS)
    served = Served(world.store, "embed")
    batch = served.create(calls([f"slow{number}" for number in range(200)]))
    served.until(batch, "in_progress", done=1)
    served.close()
    (job,) = world.store.jobs.all()
    assert (job.state, job.owner, job.reason) == ("queued", "", "interrupted")
    before = world.store.jobs.totals(job.id).rows
    assert before < 200
    served = Served(world.store, "embed")
    try:
        batch = served.until(batch)
        assert (batch.status, batch.request_counts.completed) == ("completed", 200)
    finally:
        served.close()


def test_a_server_without_the_model_leaves_a_batch_to_others(world, monkeypatch):
    monkeypatch.setattr("foretell.app.batches.LOOK_S", 0.01)
    world.add_python("embed", EMBED, TEXTS)
    add_talk(world.store, world.folder / "talk")
    served = Served(world.store, "embed")
    batch = served.create(calls([f"slow{number}" for number in range(200)]))
    served.until(batch, "in_progress", done=1)
    served.close()
    other = Served(world.store, "talk", launch=launch_scripted)
    try:
        assert other.client.batches.retrieve(batch.id).status == "in_progress"
        time.sleep(0.2)
        (job,) = world.store.jobs.all()
        assert (job.state, job.attempts) == ("queued", 1)
        assert other.client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        batch = other.until(batch)
        assert batch.status == "cancelled"
        assert len(other.lines(batch.output_file_id)) == batch.request_counts.completed
    finally:
        other.close()


def test_whoever_asks_online_goes_before_all_that_waits_of_a_batch(world, monkeypatch):
    notes = world.folder / "notes"
    notes.touch()
    monkeypatch.setenv("NOTES", str(notes))
    world.add_python("embed", NOTED, TEXTS)
    served = Served(world.store, "embed")

    async def all_at_once() -> None:
        calls = Calls(served.service._background)
        documents = [b'{"model": "embed", "input": "batch"}'] * 200
        await asyncio.gather(*(calls.ask(EMBEDDINGS, document, str(n)) for n, document in enumerate(documents)))

    try:
        waiting = served.begin(all_at_once())
        while not (said := notes.read_text().split()):
            assert not waiting.done()
        served.client.embeddings.create(model="embed", input="online")
        before = notes.read_text().split().index("online") - len(said)
        waiting.result(30)
    finally:
        served.close()
    assert len(notes.read_text().split()) == 201
    # At most: a batch that began meanwhile, the one in the replica's socket, and its own; no 190 that wait.
    assert before <= 16


@pytest.fixture
def behind():
    return Background(FakePlane(*models()), lambda reference: 1024)


async def test_a_batch_asks_behind_all_others_and_keeps_its_own_order(behind):
    await Calls(behind).ask(CHAT, b'{"model": "chat", "messages": [{"role": "user", "content": "x"}]}', "a")
    await Calls(behind).ask(EMBEDDINGS, b'{"model": "minilm", "input": "x"}', "b")
    asked = [behind._plane.generations[-1], behind._plane.requests[-1]]
    assert [(one.priority, one.protocol, one.id) for one in asked] == [(BEHIND, "batch", "a"), (BEHIND, "batch", "b")]
    hurry = b'{"model": "chat", "messages": [{"role": "user", "content": "x"}], "priority": -3}'
    await Calls(behind).ask(CHAT, hurry, "c")
    assert behind._plane.generations[-1].priority == BEHIND - 3


async def test_a_batch_leaves_room_in_the_queue(behind):
    behind._most = lambda reference: 25
    endless = parse_reference("endless")

    def ask(rows: int) -> asyncio.Future:
        request = Request({"x": np.zeros((rows, 4), np.float32)}, rows)
        return asyncio.ensure_future(behind.infer(endless, request))

    asking = [ask(10) for _ in range(5)]
    await asyncio.sleep(0.02)
    assert [request.rows for request in behind._plane.requests] == [10, 10]
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    alone = [ask(100), ask(1)]
    await asyncio.sleep(0.02)
    assert [request.rows for request in behind._plane.requests][2:] == [100], "larger than the room: alone"
    for each in alone:
        each.cancel()


async def test_the_room_of_one_model_is_not_taken_by_another(behind):
    behind._most = lambda reference: 25
    asking = [
        asyncio.ensure_future(behind.infer(parse_reference(name), Request({"x": np.zeros((20, 4), np.float32)}, 20)))
        for name in ("endless", "endless", "slow")
    ]
    await asyncio.sleep(0.02)
    assert len(behind._plane.requests) == 2, "one of each model"
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


@pytest.mark.parametrize(("protocol", "most"), [("openai", FEW), ("batch", 20)])
async def test_few_generations_begin_while_somebody_asks_online(behind, protocol, most):
    behind._plane.served.append(FakeModel("slow-chat", generator=FakeGenerator(delay_s=60.0)))
    behind.record(Observation("m", "1", "done", 0.0, 1, 0, 1, 1, 1, False, protocol, "x", tokens=TokenUse(1)))
    document = b'{"model": "slow-chat", "prompt": "x"}'
    asking = [asyncio.ensure_future(Calls(behind).ask(COMPLETIONS, document, str(n))) for n in range(20)]
    await asyncio.sleep(0.1)
    assert len(behind._plane.generations) == most
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert behind._speaking == 0


@pytest.mark.parametrize("error", [Overloaded("full", 0.01), NotReady("loading"), ReplicaCrashed("died")])
async def test_a_batch_waits_where_the_plane_is_full_or_not_ready(behind, error):
    documents = [(EMBEDDINGS, b'{"model": "minilm", "input": "x"}'), (COMPLETIONS, b'{"model": "chat", "prompt": "x"}')]
    behind._plane.refuse = error
    asking = [asyncio.ensure_future(Calls(behind).ask(*each, str(n))) for n, each in enumerate(documents)]
    await asyncio.sleep(0.05)
    assert not any(each.done() for each in asking)
    behind._plane.refuse = None
    assert [status for status, _ in await asyncio.gather(*asking)] == [200, 200]


async def test_a_call_that_kills_every_replica_fails_in_the_end(behind, monkeypatch):
    monkeypatch.setattr("foretell.app.background._PAUSE_S", 0.0)
    behind._plane.refuse = ReplicaCrashed("died")
    status, document = await Calls(behind).ask(COMPLETIONS, b'{"model": "chat", "prompt": "x"}', "a")
    assert (status, b"died" in document) == (500, True)
