"""Whether whoever runs a job is still there: asked of real processes, also of one in a PID namespace of its own."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from foretell.batch.owner import gone, this_process
from tests.repo.repository import ROOT

NAMED = """
import time
from foretell.batch.owner import this_process
print(this_process(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def named():
    """Starts a process that tells its name and stays."""
    running: list[subprocess.Popen] = []

    def start(*before: str) -> tuple[subprocess.Popen, str]:
        command = [*before, sys.executable, "-c", NAMED]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        return running[-1], running[-1].stdout.readline().strip()

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_process_is_gone_once_it_has_ended(named):
    process, name = named()
    assert not gone(name)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert gone(name), "dead, and its parent has not looked yet"
    process.wait()
    assert gone(name)


def test_another_process_with_the_number_of_a_dead_one_is_not_it():
    sight, pid, _, token = this_process().rsplit(":", 3)
    assert gone(f"{sight}:{pid}:1:{token}")


def test_a_living_process_of_another_container_with_the_same_host_name_is_not_called_gone(named):
    unshare = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("this machine lets nobody make a PID namespace")
    _, name = named(*unshare)
    assert name.split(":")[0].split("/")[0] == socket.gethostname()
    assert not gone(name)


def test_of_another_machine_nothing_is_known():
    assert not gone("another-host:1:1.00:token")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system counts no ticks")
def test_a_step_of_the_clock_makes_no_process_another(monkeypatch):
    name, began = this_process(), psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: began + 3600.0)
    assert not gone(name)
