"""A `foretell serve` in a process of its own, for verbs and examples that need a server for a while."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from foretell.core.errors import ForetellError


class ChildServer:
    """`arguments` are those of `foretell serve`. As a context manager: ready inside, drained and gone after.

    `url`, `grpc`, `models` and `start_s` are what it said when it was ready. Raises `ForetellError` with the
    server's own words when it does not start.
    """

    def __init__(self, arguments: Sequence[str], environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "foretell", "serve", *arguments, "--json"]
        # A session of its own: Ctrl-C reaches the caller alone, which then ends the server in order.
        # Its log goes to a file: nobody reads a pipe while it serves, and a full one would stop it.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by stop
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        self._ready: dict[str, Any] = {}
        # Ctrl-C can come between the end of a block and `stop`: at the latest the end of the program ends it.
        weakref.finalize(self, _end, self.process)

    def wait(self) -> "ChildServer":
        """Return when it answers."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self._log.seek(0)
            said = self._log.read().strip().splitlines()
            raise ForetellError((said or ["the server ended before it was ready"])[-1].removeprefix("error: "))
        self._ready = json.loads(line)
        return self

    @property
    def url(self) -> str:
        return str(self._ready["url"])

    @property
    def grpc(self) -> str:
        return str(self._ready["grpc"])

    @property
    def models(self) -> list[str]:
        return list(self._ready["models"])

    @property
    def start_s(self) -> float:
        return float(self._ready["start_s"])

    def stop(self, grace_s: float = 40.0) -> int:
        """Drain, and end it by force when it has not ended after `grace_s`. Returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self._log.close()
        return self.process.returncode

    def __enter__(self) -> "ChildServer":
        try:
            return self.wait()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
