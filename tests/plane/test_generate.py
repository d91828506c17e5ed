"""Generations through the plane, over real replica processes that hold a scripted generator."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from foretell.core.errors import (
    DeadlineExceeded,
    ForetellError,
    InvalidInput,
    ModelFailed,
    NotFound,
    NotReady,
    Overloaded,
    ReplicaCrashed,
)
from foretell.core.generation import Event, Finished, GenerateRequest, Piece, Started
from foretell.core.observation import Observation
from foretell.core.reference import parse_reference
from foretell.core.request import Request
from foretell.core.routing import Route, RoutingTable, Target
from foretell.core.settings import BatchingSettings, CacheSettings, ReplicaSettings
from foretell.fleet.spec import fit
from foretell.plane.deployment import Deployment
from foretell.plane.plane import Plane
from foretell.plane.spec import DeploymentSpec
from foretell.store.manifest import decode_manifest
from tests.fleet.scripted import launch_scripted, prompt
from tests.plane.conftest import until

MANIFEST = """
runtime = "llm"
artifact = "model.onnx"
[signature]
inputs = [{ name = "text_input", datatype = "BYTES", shape = [1] }]
outputs = [{ name = "text_output", datatype = "BYTES", shape = [1] }]
"""


async def every(stream: AsyncIterator[Event]) -> list[Event]:
    """All events of a stream that is expected to end badly go through here, one after the other."""
    return [event async for event in stream]


class Talk:
    """A plane with one model "m" that generates as its prompts say."""

    def __init__(self, sample_rate: float = 0.0) -> None:
        self.observations: list[Observation] = []
        self.plane = Plane(launch_scripted, self.observations.append, sample_rate)

    async def deploy(
        self, manifest: str = MANIFEST, batching: BatchingSettings | None = None, **replicas
    ) -> Deployment:
        spec = DeploymentSpec(
            name="m",
            version="1",
            package="unused",
            manifest=decode_manifest(manifest),
            batching=batching or BatchingSettings(),
            cache=CacheSettings(),
            replicas=fit(ReplicaSettings(**replicas), 2, generates=True),
            cores=2,
            replica_dollars_per_hour=3600.0,
        )
        await self.plane.deploy(spec)
        self.plane.route(RoutingTable({"m": Route((Target("1"),))}))
        return self.plane.deployments[-1]

    def ask(self, reference: str = "m", **script):
        fields = {key: script.pop(key) for key in ("n", "deadline", "id") if key in script}
        return self.plane.generate(parse_reference(reference), GenerateRequest(prompt(**script), **fields))

    async def answer(self, **script) -> str:
        return "".join([event.text async for event in self.ask(**script) if isinstance(event, Piece)])

    def outcomes(self) -> list[str]:
        return [o.outcome for o in self.observations]


@pytest.fixture
async def talk():
    talk = Talk()
    yield talk
    await talk.plane.close(grace_s=1.0)


async def test_events_come_in_order_with_the_version_that_answers(talk):
    await talk.deploy()
    events = [event async for event in talk.ask(tokens=2, n=2)]
    assert events == [
        Started(7, 2, "1"),
        Piece(0, " 0", [0]), Piece(1, " 0", [0]),
        Piece(0, " 1", [1]), Piece(1, " 1", [1]),
        Finished(0, "stop", 2), Finished(1, "stop", 2),
    ]  # fmt: skip


async def test_an_event_is_there_before_the_next_one_is_made(talk):
    await talk.deploy()
    stream = talk.ask(tokens=3, step_s=0.2)
    assert await anext(stream) == Started(7, 2, "1")
    began = time.monotonic()
    assert (await anext(stream)).text == " 0"
    assert time.monotonic() - began < 0.6
    await stream.aclose()


async def test_many_generations_run_together(talk):
    deployment = await talk.deploy()
    answers = await asyncio.gather(*(talk.answer(tokens=n) for n in range(1, 20)))
    assert answers == ["".join(f" {k}" for k in range(n)) for n in range(1, 20)]
    assert talk.outcomes() == ["done"] * 19
    assert max(batch.rows for batch in deployment.snapshot().batches) == 4, "as many as the generator has slots"


async def test_one_observation_tells_what_was_used_and_what_it_cost(talk):
    deployment = await talk.deploy()
    await asyncio.gather(*(talk.answer(tokens=10, step_s=0.01, id=f"r{n}") for n in range(3)))
    await until(lambda: not deployment.load().running)
    for seen in talk.observations:
        assert (seen.model, seen.version, seen.outcome, seen.rows, seen.batch_rows) == ("m", "1", "done", 1, 1)
        use = seen.tokens
        assert (use.prompt_tokens, use.cached_tokens, use.completion_tokens) == (7, 2, 10)
        assert 0 < use.first_token_s < seen.total_s
        gaps = np.frombuffer(use.gaps, np.float32)
        assert len(gaps) == 9
        assert (gaps > 0.005).all()
        assert use.first_token_s + gaps.sum() < seen.total_s
        assert seen.queue_s + seen.compute_s <= seen.total_s
    assert {o.request_id for o in talk.observations} == {"r0", "r1", "r2"}
    busy = sum(batch.compute_s for batch in deployment.snapshot().batches)
    assert sum(o.cost_dollars for o in talk.observations) == pytest.approx(busy, rel=0.2)
    statistics = deployment.snapshot()
    assert (statistics.succeeded, statistics.inferences, statistics.failed) == (3, 3, 0)
    assert statistics.executions >= 12


async def test_sampled_observations_carry_prompt_and_texts():
    talk = Talk(sample_rate=1.0)
    await talk.deploy()
    await talk.answer(tokens=2, n=2)
    await talk.plane.close(1.0)
    (seen,) = talk.observations
    assert seen.inputs["text_input"].tolist() == [prompt(tokens=2).encode()]
    assert seen.outputs["text_output"].tolist() == [b" 0 1", b" 0 1"]


async def test_closing_the_stream_cancels_at_once(talk):
    deployment = await talk.deploy()
    stream = talk.ask(tokens=100_000, step_s=0.01)
    for _ in range(3):
        await anext(stream)
    assert deployment.load().running == 1
    await stream.aclose()
    await until(lambda: deployment.load().running == 0, 2.0)
    assert talk.outcomes() == ["cancelled"]
    assert talk.observations[0].tokens.completion_tokens == 2
    assert talk.observations[0].cost_dollars > 0


async def test_cancelling_who_waits_for_an_event_cancels(talk):
    deployment = await talk.deploy()
    task = asyncio.create_task(talk.answer(tokens=100_000, step_s=0.01))
    await until(lambda: deployment.load().running == 1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await until(lambda: deployment.load().running == 0, 2.0)
    assert talk.outcomes() == ["cancelled"]


async def test_leaving_after_the_last_event_is_no_cancellation(talk):
    await talk.deploy()
    stream = talk.ask(tokens=1)
    for _ in range(3):
        await anext(stream)
    await stream.aclose()
    assert talk.outcomes() == ["done"]


async def test_a_refusal_is_raised_before_any_event(talk):
    await talk.deploy(batching=BatchingSettings(max_queue_rows=2))
    with pytest.raises(NotFound, match="nobody"):
        await anext(talk.ask("nobody"))
    with pytest.raises(InvalidInput, match="not taken"):
        await anext(talk.ask(refuse="invalid"))
    with pytest.raises(Overloaded, match="no memory") as refused:
        await anext(talk.ask(refuse="overloaded"))
    assert refused.value.retry_after_s == 1.5
    with pytest.raises(ModelFailed, match="a bug in submit"):
        await anext(talk.ask(refuse="bug"))
    with pytest.raises(InvalidInput, match="at least one"):
        await anext(talk.ask(n=0))
    with pytest.raises(InvalidInput, match="split it"):
        await anext(talk.ask(n=3))
    assert talk.outcomes() == ["rejected"] * 3 + ["failed"] + ["rejected"] * 2
    assert await talk.answer(tokens=1) == " 0"


async def test_a_full_queue_says_when_to_retry(talk):
    await talk.deploy(batching=BatchingSettings(max_queue_rows=5))
    tasks = [asyncio.create_task(talk.answer(tokens=20, step_s=0.02)) for _ in range(9)]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded) as refused:
        await asyncio.gather(*(anext(talk.ask(tokens=20)) for _ in range(6)))
    assert refused.value.retry_after_s > 0
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_failure_on_the_way_is_raised_in_the_place_of_the_next_event(talk):
    await talk.deploy()
    other = asyncio.create_task(talk.answer(tokens=30, step_s=0.01))
    stream = talk.ask(tokens=5, fails=2)
    assert [type(await anext(stream)) for _ in range(3)] == [Started, Piece, Piece]
    with pytest.raises(InvalidInput, match="cannot go on"):
        await anext(stream)
    assert (await other).startswith(" 0 1")


async def test_the_deadline_ends_a_stream_and_frees_the_replica(talk):
    deployment = await talk.deploy()
    stream = talk.ask(tokens=100_000, step_s=0.01, deadline=time.monotonic() + 0.5)
    assert isinstance(await anext(stream), Started)
    with pytest.raises(DeadlineExceeded):
        await every(stream)
    await until(lambda: deployment.load().running == 0, 2.0)
    with pytest.raises(DeadlineExceeded):
        await anext(talk.ask(deadline=time.monotonic() - 1.0))
    assert talk.outcomes() == ["expired", "expired"]


async def test_requests_without_a_deadline_get_the_packages(talk):
    await talk.deploy(batching=BatchingSettings(timeout_ms=200))
    with pytest.raises(DeadlineExceeded):
        await talk.answer(tokens=100_000, step_s=0.01)


async def test_a_replica_killed_in_mid_stream_ends_what_spoke_and_moves_the_rest(talk):
    deployment = await talk.deploy(count=2)
    await until(lambda: len(deployment.pool.pids()) == 2)
    spoke, heard = talk.ask(tokens=100_000, step_s=0.01), 0
    for _ in range(3):
        heard += isinstance(await anext(spoke), Piece)
    assert heard == 2
    (busy,) = [replica for replica in deployment.pool.replicas if replica.lane.busy_since is not None]
    quiet = [asyncio.create_task(talk.answer(tokens=3, reading=30, step_s=0.01)) for _ in range(4)]
    moved = [asyncio.create_task(talk.answer(tokens=3)) for _ in range(6)]
    os.kill(busy.process.pid, signal.SIGKILL)
    with pytest.raises(ReplicaCrashed, match=r"SIGKILL .* in the middle of this answer"):
        await every(spoke)
    assert await asyncio.gather(*moved) == [" 0 1 2"] * 6
    assert await asyncio.gather(*quiet) == [" 0 1 2"] * 4
    await until(lambda: len(deployment.pool.pids()) == 2)


async def test_what_has_not_spoken_waits_for_the_restart(talk, tmp_path):
    deployment = await talk.deploy()
    once = str(tmp_path / "once")
    assert await talk.answer(tokens=2, reading=3, die=-1, once=once) == " 0 1"
    assert deployment.pool.restarts == 1
    assert talk.outcomes() == ["done"]


async def test_a_poisonous_prompt_fails_alone(talk):
    deployment = await talk.deploy()
    results = await asyncio.gather(
        talk.answer(die=-1, reading=2),
        *(talk.answer(tokens=2, reading=3) for _ in range(3)),
        return_exceptions=True,
    )
    assert isinstance(results[0], ReplicaCrashed)
    assert "2 times" in results[0].message
    assert results[1:] == [" 0 1"] * 3
    assert deployment.pool.restarts == 2


async def test_what_is_not_idempotent_is_not_moved(talk, tmp_path):
    await talk.deploy("idempotent = false\n" + MANIFEST)
    with pytest.raises(ReplicaCrashed):
        await talk.answer(die=-1, once=str(tmp_path / "once"))
    assert await talk.answer(tokens=1) == " 0"


async def test_a_hanging_step_is_ended_by_the_watchdog(talk):
    await talk.deploy(hang_timeout_s=0.5)
    stream = talk.ask(tokens=5, hang=2)
    assert [type(await anext(stream)) for _ in range(3)] == [Started, Piece, Piece]
    with pytest.raises(ReplicaCrashed, match="hang_timeout_s"):
        await anext(stream)
    assert await talk.answer(tokens=1) == " 0"


async def test_a_long_answer_is_no_hang(talk):
    deployment = await talk.deploy(hang_timeout_s=0.6)
    assert len(await talk.answer(tokens=30, step_s=0.06)) > 30
    assert deployment.pool.restarts == 0


async def test_a_broken_engine_is_replaced_and_its_error_is_told(talk):
    deployment = await talk.deploy()
    with pytest.raises(ReplicaCrashed, match="the engine is broken"):
        await talk.answer(tokens=5, breaks=2)
    assert await talk.answer(tokens=1) == " 0"
    assert deployment.pool.restarts == 1


async def test_replicas_that_cannot_come_back_make_the_version_unhealthy(talk):
    deployment = await talk.deploy()
    launch, refusals = deployment.pool._launch, 0

    def refuse(spec):
        nonlocal refusals
        refusals += 1
        raise OSError("no more processes")

    deployment.pool._launch = refuse
    waiting = asyncio.create_task(talk.answer(tokens=1, reading=100_000, step_s=0.01))
    await until(lambda: deployment.load().running == 1)
    os.kill(deployment.pool.pids()[0], signal.SIGKILL)
    with pytest.raises(NotReady, match="no more processes"):
        await waiting
    assert not talk.plane.ready()
    assert "no more processes" in talk.plane.index()[0].reason
    with pytest.raises(NotReady, match="unhealthy"):
        await talk.answer()
    deployment.pool._launch = launch


async def test_draining_lets_streams_end_and_refuses_new_ones(talk):
    deployment = await talk.deploy()
    running = asyncio.create_task(talk.answer(tokens=30, step_s=0.02))
    await until(lambda: deployment.load().running == 1)
    retired = talk.plane.retire("m", "1", grace_s=20.0)
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        deployment.generate(GenerateRequest(prompt()))
    with pytest.raises(NotFound):
        await talk.answer()
    assert (await running).endswith(" 29")
    await retired
    assert deployment.pool.pids() == []


async def test_a_drain_that_takes_too_long_ends_the_streams(talk):
    await talk.deploy()
    stream = talk.ask(tokens=100_000, step_s=0.01)
    await anext(stream)
    await talk.plane.retire("m", "1", grace_s=0.2)
    with pytest.raises(NotReady, match="stopped"):
        await every(stream)
    assert talk.outcomes() == ["failed"]


async def test_models_that_predict_and_models_that_generate_say_what_they_are(talk, bench):
    await talk.deploy()
    assert talk.plane.describe(parse_reference("m")).tags == ("generation",)
    with pytest.raises(InvalidInput, match="/v1/chat/completions"):
        await talk.plane.infer(parse_reference("m"), Request({"text_input": np.array([b"x"], dtype=object)}, 1))
    await bench.deploy("def predict(inputs):\n    return {'y': inputs['x']}\n")
    with pytest.raises(InvalidInput, match="generates no text"):
        await anext(bench.plane.generate(parse_reference("m"), GenerateRequest("x")))


async def test_chaos_ends_every_request_once(talk):
    """Random scripts, cancellations and kills: one observation each, nothing left in hand."""
    deployment = await talk.deploy(count=2)
    rng = np.random.default_rng(0)

    async def one(number: int) -> str:
        script = {"tokens": int(rng.integers(1, 20)), "reading": int(rng.integers(1, 4)), "step_s": 0.001}
        if number % 7 == 0:
            script["fails"] = int(rng.integers(0, 5))
        if number % 11 == 0:
            script["die"] = int(rng.integers(-1, 5))
        task = asyncio.create_task(talk.answer(**script))
        if number % 5 == 0:
            asyncio.get_running_loop().call_later(float(rng.random()) * 0.1, task.cancel)
        try:
            await task
            return "done"
        except asyncio.CancelledError:
            return "cancelled"
        except ForetellError as error:
            return error.outcome

    ends = await asyncio.gather(*(one(number) for number in range(120)))
    assert sorted(talk.outcomes()) == sorted(ends)
    assert ends.count("done") > 20
    assert deployment._side.scheduler.outstanding == deployment.queued == 0
    await until(lambda: deployment.load().running == 0)


def test_an_llm_without_the_engines_libraries_says_what_to_install(tmp_path: Path, monkeypatch):
    from foretell.runtimes import loading
    from foretell.store.package import Package

    (tmp_path / "model.toml").write_text(MANIFEST)
    (tmp_path / "model.onnx").write_bytes(b"")
    package = Package.open(tmp_path, verify=False)
    with pytest.raises(InvalidInput.__mro__[1], match="language model"):
        loading.load(package, ReplicaSettings())
    monkeypatch.setattr(loading, "GENERATOR", "jinja2.nothing_of_that_name")
    with pytest.raises(ForetellError, match=r"foretell\[llm\]"):
        loading.load_generator(package, ReplicaSettings())
