"""Starts replica processes on this machine. The pool asks for a process; where it runs is decided here."""

import os
import signal
import socket
import subprocess
import sys
from typing import Protocol

import msgspec

from foretell.fleet.spec import WorkerSpec

SOCKET_BUFFER = 4 * 2**20
_LIKELY_CAUSE = {
    signal.SIGKILL: "out of memory, or killed from outside",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGABRT: "native code gave up",
}


class Process(Protocol):
    """A launched replica: `sock` speaks `fleet.wire`, the rest ends it."""

    sock: socket.socket

    @property
    def pid(self) -> int: ...

    def kill(self) -> None: ...

    def wait(self, timeout_s: float) -> str | None:
        """How the process ended ("exit status 0", "SIGKILL (…)"), or None if it still runs after `timeout_s`."""
        ...


class Launcher(Protocol):
    def __call__(self, spec: WorkerSpec) -> Process: ...


class LocalProcess:
    """A child process connected by a Unix socket pair. `main` is the module that it runs."""

    def __init__(self, spec: WorkerSpec, main: str = "foretell.fleet.worker") -> None:
        self.sock, theirs = socket.socketpair()
        for end in (self.sock, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        threads = str(max(1, spec.replicas.threads))
        command = [
            sys.executable,
            "-m",
            main,
            str(theirs.fileno()),
            msgspec.json.encode(spec).decode(),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}  # BLAS, tokenizers
        try:
            self._child = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env=environment
            )
        except OSError:
            self.sock.close()
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        return self._child.pid

    def kill(self) -> None:
        self._child.kill()

    def wait(self, timeout_s: float) -> str | None:
        try:
            code = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        if code >= 0:
            return f"exit status {code}"
        number = signal.Signals(-code)
        cause = _LIKELY_CAUSE.get(number)
        return f"{number.name} ({cause})" if cause else number.name
