"""Starting, watching, pausing and stopping a server and its children. Knows nothing of models or protocols."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.environments import PEERS, Unavailable

BUSY = 0.02
"""A server that uses more than this share of one core while nobody asks it anything is paused between its turns."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(url: str) -> bool:
    """True once a GET gets any 2xx answer."""
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:
            return 200 <= reply.status < 300
    except (OSError, urllib.error.URLError, ValueError):
        return False


class ServerProcess:
    """One server in a process group of its own; output goes to `.peers/logs/NAME.log`."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], cwd: Path | None = None) -> None:
        self.name = name
        self.log = PEERS / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.paused = False
        self.idle_share = 0.0
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                list(command),
                env={**os.environ, **env},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self, ready: Callable[[], bool], timeout_s: float = 60.0, poll_s: float = 0.05) -> None:
        """Block until `ready()`; raises `Unavailable` with the log's last lines if it dies or takes too long."""
        try:
            self._await(ready, timeout_s, poll_s)
        except BaseException:  # also when the run is ended meanwhile: nobody else knows this process yet
            self.stop()
            raise

    def _await(self, ready: Callable[[], bool], timeout_s: float, poll_s: float) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise Unavailable(f"{self.name} ended with status {self.process.returncode}: {self.tail()}")
            if ready():
                return
            time.sleep(poll_s)
        raise Unavailable(f"{self.name} did not answer within {timeout_s:.0f} s: {self.tail()}")

    def tail(self, lines: int = 5) -> str:
        return " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-lines:])

    def tree(self) -> list[psutil.Process]:
        """The server and all its living descendants, the server first."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        total = 0.0
        for process in self.tree():
            try:
                times = process.cpu_times()
                total += times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return total

    def measure_idle(self, seconds: float = 1.0, tries: int = 4) -> float:
        """Share of one core used while nobody asks anything; remembered in `idle_share`.

        What starting left to do may still run, so a busy second is followed by another look.
        """
        for _ in range(tries):
            before, start = self.cpu_seconds(), time.monotonic()
            time.sleep(seconds)
            self.idle_share = (self.cpu_seconds() - before) / (time.monotonic() - start)
            if self.idle_share <= BUSY:
                break
        return self.idle_share

    def settle(self, timeout_s: float = 5.0) -> None:
        """Wait until the work that the last clients left behind is done, so that it disturbs nobody else's turn."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            before = self.cpu_seconds()
            time.sleep(0.1)
            if self.cpu_seconds() - before <= 0.01 + 0.1 * self.idle_share:
                return

    def pause(self) -> None:
        """Stop a busy idler's threads until `resume`; servers that idle quietly are left alone."""
        if self.idle_share > BUSY and not self.paused:
            self._signal(signal.SIGSTOP)
            self.paused = True

    def resume(self) -> None:
        if self.paused:
            self._signal(signal.SIGCONT)
            self.paused = False

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after 8 s, to the server and every descendant."""
        self.resume()
        everyone = self.tree()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        psutil.wait_procs(everyone, timeout=8)
        for process in everyone:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for process in self.tree():
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
