"""A process of its own that writes the access log and Parquet files, so that the gateway's interpreter doesn't.

    python -m foretell.telemetry.writer STATUS-FD TARGETS-JSON    (observations on standard input, until it ends)

Owns the pipe and the books of what was lost on the way; doesn't know what a log line or a file looks like. It
outlives the gateway by as long as it takes to write what was sent, also when the gateway is killed.
"""

import contextlib
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from foretell.core.observation import Observation
from foretell.core.tensor import datatype_of, from_wire, to_wire
from foretell.telemetry.access import AccessLog, open_access_log
from foretell.telemetry.parquet import ParquetWriter
from foretell.telemetry.sink import Guard

LENGTH = struct.Struct("<I")
TICK_S = 0.25
TOGETHER = 4096
"""Observations handed to the writers at a time: a column of 4,096 costs a fourth of sixteen columns of 256."""

_NICE = 5  # requests come first, also where all cores are busy; the queue in between waits
_RESTART_S = 1.0
_CLOSE_S = 5.0


class Targets(msgspec.Struct, frozen=True):
    """Where to write: `access_log` a file or "-" for standard error, `parquet` a folder; "" for nowhere."""

    access_log: str = ""
    parquet: str = ""

    def names(self) -> list[str]:
        """Those that are wanted."""
        return [name for name in self.__struct_fields__ if getattr(self, name)]


class Books(msgspec.Struct):
    """What became of the observations that one writer was given."""

    kept: int = 0
    dropped: int = 0


class WriterProcess:
    """Sends observations to a writer process (a `Consumer`; wrap it in `Detached`: a pipe can be full).

    The process starts with the first batch. If it dies, what it had not written is counted in `losses`, the batch
    at hand is lost, and another starts at the first batch a second later.
    """

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_flatten)
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = -_RESTART_S
        self._status = -1
        self._reports = b""
        self._sent = 0
        self._books: dict[str, Books] = {}
        self._lost = dict.fromkeys(targets.names(), 0)

    @property
    def pid(self) -> int:
        """Of the process, or 0 while there is none."""
        return self._process.pid if self._process else 0

    @property
    def losses(self) -> Mapping[str, int]:
        """Observations that each writer could not keep, by its name in `Targets`."""
        return {name: lost + self._books.get(name, Books()).dropped for name, lost in self._lost.items()}

    @property
    def dropped(self) -> int:
        return sum(self.losses.values())

    def consume(self, batch: Sequence[Observation]) -> None:
        if self._process is None and not self._start():
            self._lose(len(batch))
            return
        assert self._process is not None
        assert self._process.stdin is not None
        body = self._encoder.encode(batch)
        try:
            self._process.stdin.write(LENGTH.pack(len(body)) + body)
            self._process.stdin.flush()
        except OSError:
            self._lose(len(batch))
            raise RuntimeError(f"the writer of observations died with status {self._bury()}") from None
        self._sent += len(batch)

    def tick(self) -> None:
        """Read what the process reports."""
        while self._status >= 0 and select.select([self._status], [], [], 0)[0]:
            report = os.read(self._status, 65_536)
            if not report:
                break
            *lines, self._reports = (self._reports + report).split(b"\n")
            if lines:
                self._books = msgspec.json.decode(lines[-1], type=dict[str, Books])

    def close(self) -> None:
        """Let the process write everything and end; it is left to itself after five seconds."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S)
            self._bury()

    def _start(self) -> bool:
        if time.monotonic() - self._started_at < _RESTART_S:
            return False
        self._started_at = time.monotonic()
        self._status, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs), msgspec.json.encode(self._targets).decode()],
                stdin=subprocess.PIPE,
                pass_fds=[theirs],
            )
        finally:
            os.close(theirs)
        return True

    def _bury(self) -> int:
        """Settle the books with a process that has ended: what it did not report as kept is lost."""
        assert self._process is not None
        self.tick()
        for name in self._lost:
            books = self._books.get(name, Books())
            self._lost[name] += self._sent - books.kept
        self._books = {}
        self._sent = 0
        self._reports = b""
        os.close(self._status)
        self._status = -1
        process, self._process = self._process, None
        return process.wait()

    def _lose(self, count: int) -> None:
        for name in self._lost:
            self._lost[name] += count


def _flatten(value: Any) -> tuple[str, tuple[int, ...], bytes]:
    if isinstance(value, np.ndarray):
        return datatype_of(value), value.shape, bytes(to_wire(value))
    raise TypeError(f"an observation holds a {type(value).__name__}, which cannot be sent")


def _restore(kind: type, value: Any) -> Any:
    datatype, shape, raw = value
    return from_wire(raw, datatype, tuple(shape))


def _open(targets: Targets) -> dict[str, AccessLog | ParquetWriter]:
    writers: dict[str, AccessLog | ParquetWriter] = {}
    if targets.access_log:
        writers["access_log"] = open_access_log(targets.access_log)
    if targets.parquet:
        writers["parquet"] = ParquetWriter(targets.parquet)
    return writers


class _Desk:
    """The process's side: collects what comes, hands it to the writers in large batches, reports."""

    def __init__(self, targets: Targets, status: int) -> None:
        self._guards = {name: Guard(writer, time.monotonic) for name, writer in _open(targets).items()}
        self._status = status
        self._decoder = msgspec.msgpack.Decoder(list[Observation], dec_hook=_restore)
        self._waiting: list[Observation] = []

    def take(self, body: memoryview) -> None:
        self._waiting += self._decoder.decode(body)
        if len(self._waiting) >= TOGETHER:
            self.write()

    def write(self) -> None:
        batch, self._waiting = self._waiting, []
        for guard in self._guards.values():
            if batch:
                guard.consume(batch)
            guard.call(guard.consumer.tick)
        self.report()

    def close(self) -> None:
        self.write()
        for guard in self._guards.values():
            guard.call(guard.consumer.close)
        self.report()

    def report(self) -> None:
        books = {name: Books(g.consumer.kept, g.consumer.dropped) for name, g in self._guards.items()}
        with contextlib.suppress(OSError):  # the gateway is gone: nobody keeps books any more
            os.write(self._status, msgspec.json.encode(books) + b"\n")


def _run(source: int, desk: _Desk) -> None:
    """Read frames until the pipe ends; write what came at least every `TICK_S` seconds."""
    buffer = bytearray()
    due = time.monotonic() + TICK_S
    while True:
        if select.select([source], [], [], max(0.0, due - time.monotonic()))[0]:
            read = os.read(source, 2**20)
            if not read:
                break
            buffer += read
            del buffer[: _take_frames(memoryview(buffer), desk)]
        if time.monotonic() >= due:
            desk.write()
            due = time.monotonic() + TICK_S
    desk.close()


def _take_frames(view: memoryview, desk: _Desk) -> int:
    """Hand over the whole frames at the beginning of `view`; returns how many bytes they took."""
    at = 0
    with view:
        while len(view) - at >= LENGTH.size:
            end = at + LENGTH.size + LENGTH.unpack_from(view, at)[0]
            if end > len(view):
                break
            desk.take(view[at + LENGTH.size : end])
            at = end
    return at


def main() -> None:
    # The gateway ends us by closing the pipe; a signal to the whole group must not lose what waits.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICE)
    _run(sys.stdin.fileno(), _Desk(msgspec.json.decode(sys.argv[2], type=Targets), int(sys.argv[1])))


if __name__ == "__main__":
    main()
