"""What a model may do to its replica: raise, hang, leak, crash, exit. The gateway and the neighbours go on."""

import asyncio
import os
import signal

import pytest

from foretell.core.errors import Cancelled, DeadlineExceeded, ModelFailed, NotReady, PackageError, ReplicaCrashed
from foretell.core.settings import BatchingSettings
from tests.plane.conftest import until

DOUBLE = "def predict(x):\n    return x * 2\n"

MOODY = """
import ctypes, os, sys, time

def predict(x):
    if (x == -1).any():
        raise ValueError("a poison row")
    if (x == -2).any():
        ctypes.string_at(0)
    if (x == -3).any():
        sys.exit(7)
    if (x == -4).any():
        time.sleep(3600)
    if (x == -5).any():
        return x[:-1]
    if (x == -6).any():
        os._exit(3)
    return x * 2
"""


async def test_a_model_that_raises_on_one_row_fails_that_request_alone(bench):
    await bench.deploy(MOODY)
    answers = await asyncio.gather(*(bench.answer(v) for v in (1.0, -1.0, 2.0, 3.0)), return_exceptions=True)
    assert [answers[0], *answers[2:]] == [2.0, 4.0, 6.0]
    assert isinstance(answers[1], ModelFailed)
    assert "ValueError: a poison row" in answers[1].message


@pytest.mark.parametrize(("value", "how"), [(-2.0, "SIGSEGV"), (-6.0, "exit status 3")], ids=["segfault", "exit"])
async def test_a_model_that_crashes_fails_the_request_that_did_it_and_no_other(bench, value, how):
    deployment = await bench.deploy(MOODY)
    answers = await asyncio.gather(*(bench.answer(v) for v in (1.0, value, 2.0)), return_exceptions=True)
    assert [answers[0], answers[2]] == [2.0, 4.0]
    assert isinstance(answers[1], ReplicaCrashed)
    assert how in answers[1].message
    await until(lambda: deployment.ready)
    assert await bench.answer(5.0) == 10.0


async def test_a_model_that_calls_exit_is_told_from_an_answer(bench):
    await bench.deploy(MOODY)
    answers = await asyncio.gather(bench.answer(1.0), bench.answer(-3.0), return_exceptions=True)
    assert answers[0] == 2.0
    assert isinstance(answers[1], (ReplicaCrashed, ModelFailed))
    assert await bench.answer(4.0) == 8.0


async def test_a_model_that_hangs_is_killed_by_the_watchdog(bench):
    await bench.deploy(MOODY, hang_timeout_s=0.3)
    answers = await asyncio.gather(bench.answer(-4.0), bench.answer(1.0), return_exceptions=True)
    assert isinstance(answers[0], ReplicaCrashed)
    assert "hung" in answers[0].message
    assert answers[1] == 2.0


async def test_a_model_that_returns_the_wrong_number_of_rows_is_named(bench):
    await bench.deploy(MOODY)
    with pytest.raises(ModelFailed, match="y"):
        await bench.ask(1.0, -5.0)


async def test_a_replica_that_leaks_is_replaced_and_no_request_is_lost(bench):
    leak = "hoard = []\ndef predict(x):\n    hoard.append(bytearray(40_000_000))\n    return x * 2\n"
    deployment = await bench.deploy(leak, memory_limit_mb=150)
    first = deployment.pool.pids()
    for _ in range(400):
        assert await bench.answer(1.0) == 2.0
        await asyncio.sleep(0.01)
        if deployment.pool.pids() != first:
            break
    assert deployment.pool.pids() != first


async def test_a_replica_killed_from_outside_comes_back_and_its_requests_are_answered(bench):
    deployment = await bench.deploy("import time\ndef predict(x):\n    time.sleep(0.05)\n    return x * 2\n")
    pending = [asyncio.ensure_future(bench.answer(float(v))) for v in range(6)]
    await asyncio.sleep(0.02)
    os.kill(deployment.pool.pids()[0], signal.SIGKILL)
    assert await asyncio.gather(*pending) == [2.0 * v for v in range(6)]
    assert deployment.pool.restarts == 1


async def test_a_replica_that_cannot_be_spawned_is_tried_again_until_it_can(bench, monkeypatch):
    deployment = await bench.deploy(DOUBLE)
    launch, refusals = deployment.pool._launch, 0

    def refuse_twice(spec):
        nonlocal refusals
        refusals += 1
        if refusals <= 2:
            raise OSError("no process can be started")
        return launch(spec)

    monkeypatch.setattr(deployment.pool, "_launch", refuse_twice)
    os.kill(deployment.pool.pids()[0], signal.SIGKILL)
    await until(lambda: refusals == 3)
    assert await bench.answer(2.0) == 4.0


async def test_a_model_that_crashes_on_every_request_answers_them_all(bench):
    await bench.deploy("import os\ndef predict(x):\n    if (x == 1).any():\n        os._exit(9)\n    return x\n")
    answers = await asyncio.gather(*(bench.answer(1.0, timeout_s=60) for _ in range(4)), return_exceptions=True)
    assert all(isinstance(a, (ReplicaCrashed, NotReady)) for a in answers)


async def test_a_crash_loop_makes_the_version_unhealthy_and_says_why(bench):
    deployment = await bench.deploy(DOUBLE)
    model = bench.folder / "m" / "1" / "model.py"
    model.write_text("raise RuntimeError('the disk is gone')\n")
    os.kill(deployment.pool.pids()[0], signal.SIGKILL)
    await until(lambda: "the disk is gone" in deployment.reason, 30)
    assert not bench.plane.ready()
    with pytest.raises(NotReady, match="the disk is gone"):
        await bench.answer(1.0)


async def test_a_package_that_cannot_be_loaded_is_refused_with_its_own_reason(bench):
    with pytest.raises(PackageError, match="the disk is gone"):
        await bench.deploy("raise RuntimeError('the disk is gone')\n")
    assert bench.plane.deployments == []


async def test_a_model_that_takes_too_long_to_load_is_given_up(bench):
    with pytest.raises(ReplicaCrashed, match="start_timeout_s"):
        await bench.deploy("import time\ntime.sleep(60)\n", start_timeout_s=0.5)


async def test_a_deadline_covers_the_time_in_the_queue_and_the_time_in_the_model(bench):
    slow = "import time\ndef predict(x):\n    time.sleep(0.4)\n    return x * 2\n"
    await bench.deploy(slow, batching=BatchingSettings(max_batch_size=1))
    answers = await asyncio.gather(
        *(bench.answer(float(v), timeout_s=0.2) for v in range(4)), bench.answer(9.0), return_exceptions=True
    )
    assert all(isinstance(a, DeadlineExceeded) for a in answers[:4])
    assert answers[4] == 18.0
    assert bench.outcomes().count("expired") == 4


async def test_a_client_that_goes_away_leaves_the_queue(bench):
    slow = "import time\ndef predict(x):\n    time.sleep(0.2)\n    return x * 2\n"
    deployment = await bench.deploy(slow, batching=BatchingSettings(max_batch_size=1))
    tasks = [asyncio.ensure_future(bench.answer(float(v))) for v in range(5)]
    await asyncio.sleep(0.05)
    for task in tasks[1:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[0].result() == 0.0
    assert deployment.queued == 0
    assert bench.outcomes().count("cancelled") == 4


async def test_closing_answers_what_was_admitted_and_leaves_no_process(bench):
    deployment = await bench.deploy("import time\ndef predict(x):\n    time.sleep(0.1)\n    return x * 2\n")
    pids = deployment.pool.pids()
    pending = [asyncio.ensure_future(bench.answer(float(v))) for v in range(3)]
    await asyncio.sleep(0.02)
    await bench.plane.close(grace_s=10.0)
    assert await asyncio.gather(*pending) == [0.0, 2.0, 4.0]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_closing_without_grace_tells_those_who_still_wait(bench):
    await bench.deploy("import time\ndef predict(x):\n    time.sleep(5)\n    return x * 2\n")
    pending = asyncio.ensure_future(bench.answer(1.0))
    await asyncio.sleep(0.1)
    await bench.plane.close(grace_s=0.05)
    with pytest.raises((Cancelled, NotReady)):
        await pending
