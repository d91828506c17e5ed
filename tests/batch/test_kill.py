"""kill -9 at random moments, of the real command: the job is resumed until it is done, and its output is row by row
that of a run which nobody disturbed.
"""

import os
import random
import signal
import time

import numpy as np
import pytest

from tests.batch.conftest import read

ROWS = 14_000
MODEL = """
import time
def predict(x):
    time.sleep(0.01)
    if (x == -1).any(): raise ValueError("minus one")
    return {"y": x * 2}
"""
SIZES = ("--batch-rows", 50, "--part-rows", 200)


@pytest.fixture
def job(world):
    """A model that takes its time, and a table with some rows on which it raises."""
    world.add_python("slow", MODEL)
    x = np.arange(ROWS, dtype=np.float32)
    x[::777] = -1
    world.source = world.table("in.parquet", id=np.arange(ROWS), x=x)
    return world


def command(world, output: str, *more: object):
    arguments = (
        "batch",
        "slow",
        world.source,
        world.folder / output,
        *SIZES,
        "--replicas",
        1,
        "--trust-code",
        "--json",
        *more,
    )
    return world.cli(*arguments, start_new_session=True)


@pytest.mark.slow
def test_killed_ten_times_at_random_moments_the_output_is_that_of_an_undisturbed_run(job):
    undisturbed = command(job, "calm")
    chance = random.Random(7)
    for whom in chance.sample(["parent", "group"] * 5, 10):
        process = command(job, "out", "--resume")
        if chance.random() < 0.3:  # at any moment of its start
            time.sleep(chance.uniform(0.0, 1.5))
        else:
            until_working(job, process)
            time.sleep(chance.uniform(0.0, 0.15))
        kill(process, whom)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was killed in mid-job"
        whole_parts_only(job)
    process = command(job, "out", "--resume")
    until_working(job, process)
    assert process.poll() is None, "its replica is killed in mid-job"
    kill(process, "replica")  # the parent goes on by itself
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    _, said = undisturbed.communicate(timeout=60)
    assert undisturbed.returncode == 0, said
    assert 5 < job.store.jobs.by_output(str(job.folder / "out")).attempts <= 11, "some died before they began"
    assert read(job.folder / "out").equals(read(job.folder / "calm"))
    assert job.errors("out") == job.errors("calm")
    assert len(job.errors("out")) == len(range(0, ROWS, 777))


def until_working(job, process) -> None:
    """Wait until a part of this run is recorded, or the run is over."""
    before = known(job)
    end = time.monotonic() + 60
    while known(job) == before and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def known(job) -> int:
    found = job.store.jobs.by_output(str(job.folder / "out"))
    return len(job.store.jobs.parts(found.id)) if found else 0


def kill(process, whom: str) -> None:
    if process.poll() is not None:
        return
    if whom == "parent":
        os.kill(process.pid, signal.SIGKILL)
    elif whom == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        for child in children(process.pid):
            os.kill(child, signal.SIGKILL)


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def whole_parts_only(job) -> None:
    """What is visible can be read, and holds no row twice."""
    folder = job.folder / "out"
    if any(folder.glob("part-*")):
        ids = read(folder).column("id").to_pylist()
        assert len(ids) == len(set(ids))
