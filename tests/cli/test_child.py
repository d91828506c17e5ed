"""Servers that verbs start for a while end with the program, however it ends."""

import subprocess
import sys
import time

import psutil

STARTS = """
from foretell.cli.child import ChildServer
server = ChildServer(["scale", "--port", "0", "--grpc-port", "-1", "--access-log", "none"]).wait()
print(server.process.pid, flush=True)
raise KeyboardInterrupt
"""


def test_a_program_that_forgets_its_server_ends_it_all_the_same(scale):
    done = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, timeout=60, check=False)
    pid = int(done.stdout)
    until = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the server outlives its program"
        time.sleep(0.05)
