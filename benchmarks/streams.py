"""foretell on Kafka beside a plain loop, quixstreams and onnxruntime alone: `python -m benchmarks.streams [MODEL …]`.

Every processor reads the same topic and writes one of its own, on the same broker, in turn; each round holds every one
of them, and ratios are taken within a round. Throughput is that of answers which a reader of committed messages sees.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from benchmarks import models
from benchmarks.ceiling import Ceiling, Setup, setups
from benchmarks.client import direct
from benchmarks.environments import APPS, PEERS, Unavailable, ensure
from benchmarks.models import Model
from benchmarks.processes import ServerProcess
from benchmarks.servers import FORETELL, foretell_store
from benchmarks.stats import summarise
from benchmarks.stream_broker import Broker, Watch
from foretell.streams.state import StateStore
from foretell.streams.transform import Transform

PARTITIONS = 2
KEYS = 1_000_000
BATCHES = (32, 256, 1024)
"""Of the ceiling: what foretell's micro-batches grow to, and less."""
# With librdkafka's defaults the broker takes 23 s to let the first reader of a group in; with these, 3 s.
KAFKA = {"FORETELL_KAFKA_SESSION_TIMEOUT_MS": "6000", "FORETELL_KAFKA_HEARTBEAT_INTERVAL_MS": "500"}
TRANSFORM = """
import numpy as np
from foretell.streams.windows import sliding

spend = sliding("1h", every="5m")


def transform_batch(events, state):
    seen = state.add(spend, events["amount"])
    x = np.array([*events["x"]]).astype(np.float32)
    x[:, 0] = seen.count
    return {"x": x}
"""


@dataclass(frozen=True)
class Processor:
    """What is measured: its command, how many messages its turn has, whether its answers are the model's own."""

    name: str
    command: Callable[["Bench", str, str], list[str]]
    share: float = 1.0
    exact: bool = True
    stateful: bool = False


@dataclass
class Turn:
    """What came of one processor in one round."""

    rate: float
    rss_mb: float


class Bench:
    """A broker, a topic full of rows of one model, and what that model answers to them."""

    def __init__(self, model: Model, count: int, keys: int) -> None:
        self.model, self.count, self.keys = model, count, keys
        self.folder = PEERS / "run" / f"streams-{model.name}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.environment = foretell_store(model) | KAFKA | {"PYTHONPATH": str(APPS), "BENCH_MODEL": str(model.path)}
        self.transform = self.folder / "transform.py"
        self.transform.write_text(TRANSFORM)
        self.expected = direct(model)
        self.broker = Broker()
        time.sleep(0.5)
        self.source = self.broker.topic("in", PARTITIONS)
        self.broker.fill(self.source, self.messages())

    def key(self, number: int) -> bytes:
        """Keys come in an order of chance, none again before all were there."""
        return b"card-%d" % (number * 7_368_787 % self.keys)

    def messages(self) -> Iterator[tuple[bytes, bytes, int]]:
        """Key, value, partition. Each says which of the model's rows it has."""
        rows = [row["x"][0].tolist() for row in self.model.rows]
        bodies = [json.dumps({"x": [int(v) if v == int(v) else round(v, 4) for v in row]})[:-1] for row in rows]
        for number in range(self.count):
            value = f'{bodies[number % len(rows)]}, "amount": {number % 97}}}'
            yield self.key(number), value.encode(), number // len(rows) % PARTITIONS

    def fill_state(self, path: Path) -> None:
        """A state in which every key of the stream has been seen, at the beginning of its partition."""
        transform = Transform.load(self.transform, trust_code=True)
        store = StateStore.open(path, transform.version, transform.kinds, transform.watermark, 1 << 30)
        now = int(time.time() * 1000) - 600_000
        row = {"x": self.model.rows[0]["x"][0].tolist(), "amount": 1.0}
        for partition in range(PARTITIONS):
            name = f"{self.source}/{partition}"
            mine = [n for n in range(self.keys) if n // len(self.model.rows) % PARTITIONS == partition]
            for start in range(0, len(mine), 4096):
                numbers = mine[start : start + 4096]
                keys, times = [self.key(number) for number in numbers], np.full(len(numbers), now, np.int64)
                transform.run(store, name, keys, times, store.advance(name, times), [row] * len(numbers))
                store.commit({name: "0"})
        store.close()

    def turn(self, processor: Processor, number: int) -> Turn:
        """Start it, let it answer, stop it, look at what it answered."""
        sink = self.broker.topic("out", PARTITIONS)
        group = f"{processor.name.replace(' ', '-').replace(',', '')}-{number}"
        count = int(self.count * processor.share)
        if processor.stateful:
            self.fill_state(self.folder / f"{group}.state")
        process = ServerProcess(f"streams-{group}", processor.command(self, sink, group), self.environment)
        watch = Watch(self.broker, sink, PARTITIONS)
        try:
            watch.until(count, 120.0, lambda: process.process.poll() is None)
            rss = sum(each.memory_info().rss for each in process.tree()) / 2**20
            rate = watch.rate(count)
        except RuntimeError as error:
            raise Unavailable(f"{error}: {process.tail()}") from None
        finally:
            process.stop()
        if processor.exact:
            self.check(processor.name, watch.answers(count if processor.share == 1.0 else 1))
        watch.close()
        return Turn(rate, rss)

    def check(self, name: str, answers: list[dict]) -> None:
        """The answers are the model's, and none came twice."""
        if len(answers) > self.count:
            raise ValueError(f"{name} gave {len(answers):,} answers to {self.count:,} messages")
        labels = [int(row["label"][0]) for row in self.expected]
        found = np.bincount([answer.get("outputs", answer)["label"] for answer in answers], minlength=max(labels) + 1)
        wanted = np.bincount(labels, minlength=max(labels) + 1) * (len(answers) / len(labels))
        if np.abs(found - wanted).max() > max(len(labels), 0.05 * len(answers)):
            raise ValueError(f"{name} gave other answers than the model: {found.tolist()} for {wanted.tolist()}")


def stream(bench: Bench, sink: str, group: str, *more: str) -> list[str]:
    source = f"kafka://{bench.broker.address}/{bench.source}?group={group}"
    ends = ["--from", source, "--to", f"kafka://{bench.broker.address}/{sink}"]
    return [*FORETELL, "stream", bench.model.name, *ends, "--dead-letter", str(bench.folder / "dead.jsonl"), *more]


def workers(bench: Bench, sink: str, group: str) -> list[str]:
    return stream(bench, sink, group, "--workers", str(os.cpu_count() or 1))


def stateful(bench: Bench, sink: str, group: str) -> list[str]:
    file = str(bench.folder / f"{group}.state")
    flags = ["--state", str(bench.transform), "--state-file", file, "--state-cache", "1024", "--trust-code"]
    return stream(bench, sink, group, *flags)


def loop(kind: str) -> Callable[[Bench, str, str], list[str]]:
    file = str(APPS / "kafka_loop.py")
    return lambda bench, sink, group: [sys.executable, file, kind, bench.broker.address, bench.source, sink, group]


def quixstreams(bench: Bench, sink: str, group: str) -> list[str]:
    file = str(APPS / "quixstreams" / "app.py")
    return [str(ensure("quixstreams")), file, bench.broker.address, bench.source, sink, group]


FORETELL_NAME = "foretell"
WORKERS = "foretell, a worker a core"
STATEFUL = "foretell, a million keys"
CEILING = "in-process onnxruntime"
COPY = "copy, no model"
PROCESSORS = [
    Processor(FORETELL_NAME, stream),
    Processor(WORKERS, workers),
    Processor(STATEFUL, stateful, exact=False, stateful=True),
    Processor(COPY, loop("copy"), exact=False),
    Processor("plain loop", loop("predict"), 0.2),
    Processor("quixstreams", quixstreams, 0.2),
]
GOALS = [
    (WORKERS, CEILING, 0.7),
    (FORETELL_NAME, CEILING, 0.7),
    (FORETELL_NAME, "plain loop", 1.0),
    (FORETELL_NAME, "quixstreams", 1.0),
    (STATEFUL, FORETELL_NAME, 0.8),
    (FORETELL_NAME, COPY, None),
]


def best_setup(model: Model) -> Setup:
    """The ceiling's fastest setup, by a short trial."""
    found = {}
    for setup in setups(BATCHES):
        ceiling = Ceiling(model, setup)
        ceiling.measure(0.1)
        found[setup] = ceiling.measure(0.4)
        ceiling.close()
    return max(found, key=lambda setup: found[setup])


def measure(model: Model, options: argparse.Namespace) -> dict[str, list[Turn]]:
    """All processors, all rounds; those that cannot run are left out and say why."""
    turns: dict[str, list[Turn]] = {}
    setup = best_setup(model)
    bench = Bench(model, options.messages, options.keys)
    wanted = [p for p in PROCESSORS if not options.only or p.name in options.only.split(";")]
    try:
        for number in range(options.rounds):
            ceiling = Ceiling(model, setup)
            ceiling.measure(0.2)
            turns.setdefault(CEILING, []).append(Turn(ceiling.measure(1.0), 0.0))
            ceiling.close()
            for processor in wanted[number % len(wanted) :] + wanted[: number % len(wanted)]:
                try:
                    turn = bench.turn(processor, number)
                    turns.setdefault(processor.name, []).append(turn)
                    print(f"  {processor.name}: {turn.rate:,.0f} answers/s, {turn.rss_mb:,.0f} MB", flush=True)
                except Unavailable as error:
                    print(f"  {processor.name} left out: {error}", flush=True)
    finally:
        bench.broker.stop()
    print(f"{CEILING}: {setup}")
    return turns


def report(model: Model, turns: dict[str, list[Turn]]) -> str:
    """The tables of RESULTS.md."""
    lines = ["| processor | messages/s, median (min–max) | memory, MB |", "|---|---:|---:|"]
    for name, found in turns.items():
        rates = [turn.rate for turn in found]
        memory = f"{max(turn.rss_mb for turn in found):,.0f}" if found[0].rss_mb else "–"
        lines.append(f"| {name} | {median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f}) | {memory} |")
    lines += ["", "| against | ratio (interval) | goal | |", "|---|---:|---:|---|"]
    for one, other, goal in GOALS:
        if len(turns.get(one, [])) != len(turns.get(other, [])) or not turns.get(one):
            continue
        ratio = summarise([a.rate / b.rate for a, b in zip(turns[one], turns[other], strict=True)])
        reached = "" if goal is None else "reached" if ratio.middle >= goal else "**missed**"
        wanted = "" if goal is None else f"≥ {goal:g}"
        told = f"{ratio.middle:.2g} ({ratio.low:.2g}–{ratio.high:.2g})"
        lines.append(f"| {model.name}: {one} / {other} | {told} | {wanted} | {reached} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["digits", "boosted"], help="digits, boosted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--keys", type=int, default=KEYS)
    parser.add_argument("--only", default="", help="processors by their names, with semicolons")
    options = parser.parse_args()
    for name in options.models:
        start = time.monotonic()
        model: Model = getattr(models, name)()
        turns = measure(model, options)
        print(f"\n### Kafka → Kafka, {name}\n\n{report(model, turns)}\n\n{time.monotonic() - start:.0f} s")
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {psutil.virtual_memory().total >> 30} GiB\n")


if __name__ == "__main__":
    main()
