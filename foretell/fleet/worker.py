"""A replica's main: load one package, then answer over an inherited socket until it closes.

    python -m foretell.fleet.worker FD SPEC-JSON

A predictor runs one batch at a time, in order; a generator (runtime "llm") many requests together, see
`generate_loop`. A model that raises answers `Failed`; a model that crashes takes only this process along. It
imports neither the gateway nor its web server.
"""

import contextlib
import ctypes
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from foretell.core.model import Predictor
from foretell.core.tensor import Tensors
from foretell.fleet import generate_loop, wire
from foretell.fleet.faults import describe
from foretell.fleet.generate_loop import GenerateLoop, send
from foretell.fleet.memory import ResidentBytes
from foretell.fleet.spec import WorkerSpec
from foretell.runtimes.loading import load, load_generator
from foretell.store.package import Package

WARMUP_BUDGET_S = 5.0
_PR_SET_PDEATHSIG = 1


def serve(sock: socket.socket, spec: WorkerSpec) -> None:
    """Load, warm up, then answer until the gateway closes the socket."""
    began = time.monotonic()
    try:
        package = Package.open(Path(spec.package), verify=False)
        opened = _generating if package.manifest.runtime == "llm" else _predicting
        ready, answer = opened(package, spec)
    except Exception as error:
        send(sock, wire.frame(wire.Failed(*describe(error))))
        return
    ready.load_s = time.monotonic() - began
    send(sock, wire.frame(ready))
    answer(sock)


Answering = Callable[[socket.socket], None]
"""Answers until the gateway closes the socket."""


def _predicting(package: Package, spec: WorkerSpec) -> tuple[wire.Ready, Answering]:
    predictor = load(package, spec.replicas, spec.trust_code)
    warmup = warm_up(predictor, package.sample() or {}, spec.max_batch_size)
    return wire.Ready(0.0, warmup), lambda sock: predict_loop(sock, predictor)


def _generating(package: Package, spec: WorkerSpec) -> tuple[wire.Ready, Answering]:
    generator = load_generator(package, spec.replicas, spec.generation)
    generate_loop.warm_up(generator)
    return wire.Ready(0.0, [], generator.load()), lambda sock: GenerateLoop(sock, generator).run()


def predict_loop(sock: socket.socket, predictor: Predictor) -> None:
    """Answer batches until the gateway closes the socket."""
    reader = wire.FrameReader(reuse=True)
    resident = ResidentBytes()
    while (received := _receive(sock, reader)) is not None:
        header, body = received
        assert isinstance(header, wire.Run)
        started = time.monotonic()
        try:
            outputs = predictor.predict(wire.read_tensors(header.tensors, body))
            tensors, buffers = wire.tensors_body([outputs])
        except Exception as error:
            send(sock, wire.frame(wire.Failed(*describe(error))))
            continue
        compute_s = time.monotonic() - started
        send(sock, wire.frame(wire.Done(tensors, compute_s, resident.now_and_then()), buffers))


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
