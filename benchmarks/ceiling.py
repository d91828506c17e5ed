"""The most that onnxruntime does with a model on this machine, in process: no server, no wire, no copies between.

Searches processes × threads × batch; `python -m benchmarks.ceiling digits|embedder|image` prints the table.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass

from benchmarks import models
from benchmarks.environments import PEERS, ROOT
from benchmarks.models import Model

BATCHES = (1, 4, 8, 16, 32)

_WORKER = """
import sys, time, numpy as np, onnxruntime as ort
path, rows, threads, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
pool = {k: np.resize(v, (batch, *v.shape[1:])) for k, v in np.load(rows).items()}
session.run(None, pool)
print("ready", flush=True)
for line in sys.stdin:
    seconds, done, start = float(line), 0, time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        session.run(None, pool)
        done += batch
    print(done / (time.perf_counter() - start), flush=True)
"""


@dataclass(frozen=True)
class Setup:
    """So many processes, each with one session of so many threads, run on batches of so many rows."""

    processes: int
    threads: int
    batch: int

    def __str__(self) -> str:
        return f"{self.processes} × {self.threads} threads, batch {self.batch}"


class Ceiling:
    """Warm worker processes of one setup; they wait in a read between measurements and use no CPU then."""

    def __init__(self, model: Model, setup: Setup) -> None:
        import numpy as np

        self.setup = setup
        rows = PEERS / "models" / f"{model.name}.rows.npz"
        np.savez(rows, **{key: np.concatenate([r[key] for r in model.rows]) for key in model.rows[0]})
        arguments = [str(model.path), str(rows), str(setup.threads), str(setup.batch)]
        self.workers = [
            subprocess.Popen(
                [sys.executable, "-c", _WORKER, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for _ in range(setup.processes)
        ]
        for worker in self.workers:
            assert worker.stdout
            if worker.stdout.readline().strip() != "ready":
                raise RuntimeError(f"the in-process run of {model.name} did not start")

    def measure(self, seconds: float) -> float:
        """Rows per second of all processes together."""
        for worker in self.workers:
            assert worker.stdin
            worker.stdin.write(f"{seconds}\n")
            worker.stdin.flush()
        return sum(float(worker.stdout.readline()) for worker in self.workers if worker.stdout)

    def close(self) -> None:
        for worker in self.workers:
            assert worker.stdin
            worker.stdin.close()
            worker.wait(timeout=10)


def setups(batches: tuple[int, ...]) -> list[Setup]:
    cores = os.cpu_count() or 1
    splits = {(1, cores), (cores, 1)}
    return [Setup(p, t, b) for p, t in sorted(splits) for b in batches]


def search(model: Model, seconds: float, batches: tuple[int, ...] = BATCHES) -> tuple[Setup, dict[Setup, float]]:
    """Measure every setup for `seconds`; the fastest, and all rates in rows/s."""
    found: dict[Setup, float] = {}
    for setup in setups(batches):
        ceiling = Ceiling(model, setup)
        try:
            ceiling.measure(min(0.2, seconds))
            found[setup] = ceiling.measure(seconds)
        finally:
            ceiling.close()
    return max(found, key=lambda s: found[s]), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["digits", "embedder", "image"])
    parser.add_argument("--seconds", type=float, default=1.0, help="per setup")
    options = parser.parse_args()
    start = time.monotonic()
    best, found = search(getattr(models, options.model)(), options.seconds)
    for setup, rate in found.items():
        print(f"{'→' if setup == best else ' '} {setup!s:28} {rate:10.1f} rows/s")
    print(f"{time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
