"""The short search behind the peers' settings: workers × batch × wait, one after the other, on the tiny model.

`python -m benchmarks.tune [--only mosec,LitServe]` prints requests/s; the winners stand in `servers.py`.
"""

import argparse
import signal
import sys
from collections.abc import Callable
from statistics import median

from benchmarks import models, servers, wire
from benchmarks.client import direct
from benchmarks.environments import Unavailable
from benchmarks.models import Model
from benchmarks.rounds import http_target, run_rounds
from benchmarks.servers import Server, Tuning

Start = Callable[[Model, Tuning], Server]

CANDIDATES: dict[str, tuple[Start, tuple[Tuning, ...]]] = {
    "FastAPI": (servers.fastapi, (Tuning(workers=1), Tuning(workers=2), Tuning(workers=3))),
    "mosec": (
        servers.mosec,
        tuple(Tuning(w, b, 1) for w, b in ((1, 64), (2, 64), (1, 16), (2, 16))),
    ),
    "Triton core": (
        servers.triton,
        tuple(Tuning(w, 64, wait) for w, wait in ((1, 0), (2, 0), (1, 0.2), (1, 1))),
    ),
    "MLServer": (
        servers.mlserver,
        tuple(Tuning(*t) for t in ((0, 64, 1), (0, 0, 0), (0, 16, 5), (1, 64, 1), (2, 0, 0))),
    ),
    "LitServe": (
        servers.litserve,
        (
            *(Tuning(*t) for t in ((1, 64, 1), (1, 16, 5), (2, 1, 0))),
            Tuning(1, 64, 1, {"BENCH_FRONTS": "2"}),
            Tuning(1, 64, 1, {"BENCH_FAST_QUEUE": "0"}),
        ),
    ),
}


def tune(name: str, rounds: int) -> None:
    """Print each candidate's median requests/s at 8 and 64 clients."""
    start, candidates = CANDIDATES[name]
    model = models.digits()
    want, payloads = direct(model), [wire.as_json(rows) for rows in model.rows]
    for tuning in candidates:
        server = start(model, tuning)
        try:
            label = f"{name} {tuning.workers} {tuning.batch} {tuning.wait_ms} {tuning.more or ''}"
            target = http_target(server, model, payloads, want, (8, 64), server.json_path)
            records = run_rounds(label, [target], rounds, 1.0, lambda _: None)
        finally:
            server.process.stop()
        rates = {c: median(r.rate for r in records if r.clients == c) for c in (8, 64)}
        print(f"{label:44} 8 clients {rates[8]:8,.0f}/s   64 clients {rates[64]:8,.0f}/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(CANDIDATES))
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("peer, workers, batch, wait ms")
    for name in options.only.split(","):
        try:
            tune(name, options.rounds)
        except (Unavailable, ValueError) as error:
            print(f"{name}: {error}")


if __name__ == "__main__":
    main()
