"""Interleaved rounds: every target at every concurrency once a round, in shuffled order, one at a time.

Only one server is asked at any moment, and what its clients left behind is finished before the next is; those
whose threads spin when idle are stopped in between.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.ceiling import Ceiling
from benchmarks.client import verify
from benchmarks.load import Payload, Sample, write_script, wrk
from benchmarks.models import Model, Rows
from benchmarks.processes import ServerProcess
from benchmarks.servers import Server

Measure = Callable[[int, float], Sample]


@dataclass
class Target:
    """Something that is timed: `measure(clients, seconds)`; `process` is None where nothing serves."""

    name: str
    measure: Measure
    clients: tuple[int, ...]
    process: ServerProcess | None = None


@dataclass(frozen=True)
class Record:
    """One measurement of one round. `cpu_us`: CPU microseconds of all the server's processes per request."""

    workload: str
    name: str
    clients: int
    round: int
    rate: float
    p50_ms: float
    p99_ms: float
    errors: int
    cpu_us: float = float("nan")

    def document(self) -> dict[str, object]:
        return asdict(self)


def http_target(
    server: Server,
    model: Model,
    payloads: Sequence[Payload],
    want: list[Rows],
    clients: tuple[int, ...],
    path: str,
    name: str = "",
    steady: bool = False,
) -> Target:
    """A verified target that wrk drives. Raises `ValueError` if an answer differs from direct onnxruntime."""
    verify(server.name, server.port, path, list(payloads), want, model.tolerance)
    name = name or server.name
    script = write_script(f"{model.name}-{name}".replace(" ", "").replace(",", "-"), path, payloads, steady=steady)
    server.process.measure_idle()
    return Target(name, _wrk(script, server.port), clients, server.process)


def _wrk(script: Path, port: int) -> Measure:
    return lambda clients, seconds: wrk(script, port, clients, seconds)


def ceiling_target(ceiling: Ceiling) -> Target:
    """The in-process rate as a target: 0 clients, rows/s for requests/s of one row."""

    def measure(clients: int, seconds: float) -> Sample:
        rate = ceiling.measure(seconds)
        return Sample(rate, float("nan"), float("nan"), 0, round(rate * seconds))

    return Target("in-process onnxruntime", measure, (0,))


def plan(targets: Sequence[Target], number: int) -> list[tuple[Target, int]]:
    """The order of round `number`: by concurrency, so that rivals at equal load are neighbours in time; targets
    shuffled (by a seed made of the round), concurrencies forwards in even rounds and backwards in odd ones.
    """
    levels = sorted({c for t in targets for c in t.clients}, reverse=bool(number % 2))
    draw = random.Random(number)
    order = []
    for level in levels:
        here = [t for t in targets if level in t.clients]
        draw.shuffle(here)
        order += [(target, level) for target in here]
    return order


def run_rounds(
    workload: str, targets: Sequence[Target], rounds: int, seconds: float, say: Callable[[str], None] = print
) -> list[Record]:
    """All measurements of a workload. In the first round each runs one unmeasured second
    at the same load before; servers stay warm from then on."""
    records = []
    _pause_all(targets)
    for number in range(rounds):
        for target, clients in plan(targets, number):
            records.append(_measure_one(workload, target, clients, number, seconds))
            _pause_all(targets)
        say(f"{workload}: round {number + 1} of {rounds}")
    return records


def _measure_one(workload: str, target: Target, clients: int, number: int, seconds: float) -> Record:
    server = target.process
    if server:
        server.resume()
    if number == 0:
        target.measure(clients, 1.0)
        if server:
            server.settle()
    before = server.cpu_seconds() if server else float("nan")
    got = target.measure(clients, seconds)
    used = server.cpu_seconds() - before if server else float("nan")
    if server:
        server.settle()
    cpu_us = used / got.requests * 1e6 if got.requests else float("nan")
    return Record(workload, target.name, clients, number, got.rate, got.p50_ms, got.p99_ms, got.errors, cpu_us)


def _pause_all(targets: Sequence[Target]) -> None:
    for target in targets:
        if target.process:
            target.process.pause()
