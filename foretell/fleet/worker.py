"""A replica's main: load one package, then answer batches over an inherited socket until it closes.

    python -m foretell.fleet.worker FD SPEC-JSON

One batch at a time, in order. A model that raises answers `Failed`; a model that crashes takes only this
process along. It imports neither the gateway nor its web server.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import msgspec
import numpy as np

from foretell.core.errors import ForetellError, ModelFailed
from foretell.core.model import Predictor
from foretell.core.tensor import Tensors
from foretell.fleet import wire
from foretell.fleet.spec import WorkerSpec
from foretell.runtimes.loading import load
from foretell.store.package import Package

RSS_INTERVAL_S = 1.0
WARMUP_BUDGET_S = 5.0
_PR_SET_PDEATHSIG = 1
_PAGE = os.sysconf("SC_PAGE_SIZE")


def serve(sock: socket.socket, spec: WorkerSpec) -> None:
    """Load, warm up, then answer until the gateway closes the socket."""
    began = time.monotonic()
    try:
        package = Package.open(Path(spec.package), verify=False)
        predictor = load(package, spec.replicas, spec.trust_code)
        warmup = warm_up(predictor, package.sample() or {}, spec.max_batch_size)
    except Exception as error:
        _send(sock, wire.frame(_describe(error)))
        return
    _send(sock, wire.frame(wire.Ready(time.monotonic() - began, warmup)))
    reader = wire.FrameReader(reuse=True)
    next_rss = 0.0
    while (received := _receive(sock, reader)) is not None:
        header, body = received
        assert isinstance(header, wire.Run)
        started = time.monotonic()
        try:
            outputs = predictor.predict(wire.read_tensors(header.tensors, body))
            tensors, buffers = wire.tensors_body([outputs])
        except Exception as error:
            _send(sock, wire.frame(_describe(error)))
            continue
        now = time.monotonic()
        rss = 0
        if now >= next_rss:
            rss, next_rss = _resident_bytes(), now + RSS_INTERVAL_S
        _send(sock, wire.frame(wire.Done(tensors, now - started, rss), buffers))


def warm_up(predictor: Predictor, sample: Tensors, max_batch_size: int) -> list[tuple[int, float]]:
    """Run the package's sample alone and as a full batch, so that the first request finds everything allocated.

    Returns (rows, seconds) pairs that seed the scheduler's service times. The full batch is skipped when it
    would take longer than a few seconds.
    """
    if not sample:
        return []
    rows = predictor.signature.check(sample)
    timings: list[tuple[int, float]] = []
    sizes = [rows]
    if predictor.signature.batchable and rows < max_batch_size:
        sizes.append(max_batch_size)
    for size in sizes:
        batch = {name: np.resize(array, (size, *array.shape[1:])) for name, array in sample.items()}
        if size == rows:
            predictor.predict(sample)  # first run: lazy initialisation, not representative
            batch = sample
        elif timings and timings[0][1] * size / rows > WARMUP_BUDGET_S:
            break
        started = time.monotonic()
        predictor.predict(batch)
        timings.append((size, time.monotonic() - started))
    return timings


def _receive(sock: socket.socket, reader: wire.FrameReader) -> tuple[wire.Header, memoryview] | None:
    while (received := reader.next()) is None:
        count = sock.recv_into(reader.room())
        if not count:
            return None
        reader.received(count)
    return received


def _send(sock: socket.socket, buffers: list[wire.Buffer]) -> None:
    total = sum(map(len, buffers))
    sent = sock.sendmsg(buffers)
    if sent < total:
        sock.sendall(b"".join(buffers)[sent:])


def _describe(error: Exception) -> wire.Failed:
    if isinstance(error, ForetellError):
        return wire.Failed(type(error).__name__, error.message)
    traceback.print_exc()
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return wire.Failed(ModelFailed.__name__, f"the model raised {type(error).__name__}: {error} ({place})")


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * _PAGE
    except OSError:
        return 0


def _die_with_the_gateway() -> None:
    """Where the system allows: be killed when the gateway dies, and be the first to go when memory runs out."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def main() -> None:
    _die_with_the_gateway()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's to handle: it drains, then closes us
    spec = msgspec.json.decode(sys.argv[2], type=WorkerSpec)
    sock = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(sock, spec)


if __name__ == "__main__":
    main()
