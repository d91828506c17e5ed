"""What processes cost while a load runs: CPU seconds and memory of a process tree, and how long one takes to start.
Knows psutil; doesn't know what the processes do.
"""

import asyncio
import ipaddress
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec
import psutil

from foretell.core.errors import ConfigError

_LOOK_EVERY_S = 0.5


class ProcessUse(msgspec.Struct, frozen=True):
    """One process: CPU seconds in the watched window and its largest resident memory in bytes."""

    pid: int
    name: str
    cpu_s: float
    rss_bytes: int


class ProcessWatch:
    """Watches a process and its children between `start` and `stop`, from a thread that looks twice a second."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._first: dict[int, float] = {}
        self._last: dict[int, ProcessUse] = {}
        self._started = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="foretell-bench-watch", daemon=True)

    def start(self) -> None:
        self._look()
        self._started = True
        self._thread.start()

    def stop(self) -> list[ProcessUse]:
        """End the watch; every process seen, the root first, dead ones with what they had used."""
        self._stop.set()
        self._thread.join()
        self._look()
        return sorted(self._last.values(), key=lambda use: (use.pid != self.pid, use.pid))

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        for process in _tree(self.pid):
            try:
                with process.oneshot():
                    times, rss, name = process.cpu_times(), process.memory_info().rss, process.name()
            except psutil.Error:
                continue
            cpu = times.user + times.system
            # A process born during the watch counts from its birth.
            first = self._first.setdefault(process.pid, 0.0 if self._started else cpu)
            peak = self._last[process.pid].rss_bytes if process.pid in self._last else 0
            self._last[process.pid] = ProcessUse(process.pid, name, cpu - first, max(rss, peak))


def find_server(url: str) -> int | None:
    """The process that listens where `url` points, if that is on this machine and we may see it."""
    parts = urlsplit(url)
    port = parts.port or 80
    if not _is_local(parts.hostname or ""):
        return None
    try:
        listeners = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:
        return None
    pids = {c.pid for c in listeners if c.laddr.port == port and c.pid}
    # Workers that share one port: the parent of the others stands for all.
    roots = [pid for pid in pids if not pids & {p.pid for p in _ancestors(pid)}]
    return min(roots) if roots else None


async def cold_start(
    command: Sequence[str], url: str, body: bytes, timeout_s: float = 60.0
) -> tuple[float, subprocess.Popen[bytes]]:
    """Start `command` and post JSON `body` to `url` until it answers 2xx.

    Returns the seconds from the start to that first answer, and the process, which the caller ends.
    Raises `ConfigError` if the process ends or has not answered after `timeout_s`; it is ended then.
    """
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not await asyncio.to_thread(_answers, url, body):
        if process.poll() is not None:
            raise ConfigError(f"{' '.join(command)} ended with status {process.returncode} before it answered")
        if time.monotonic() - begun > timeout_s:
            process.terminate()
            process.wait()
            raise ConfigError(f"{' '.join(command)} has not answered at {url} after {timeout_s:g} s")
        await asyncio.sleep(0.01)
    return time.monotonic() - begun, process


def _answers(url: str, body: bytes) -> bool:
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _ancestors(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).parents())
    except psutil.Error:
        return []


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host == socket.gethostname()
    return address.is_loopback
