"""What keyed state costs: `python -m benchmarks.state [--keys 1000000] [--events 4000000] [--skew 1.0] …`.

A sliding window of an hour in steps of five minutes over a stream of 5 ms of event time between events, committed every
2,048 events. Prints microseconds an event, the longest commit, memory and disk; the last quarter is the settled state.
"""

import argparse
import gc
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from foretell.streams.state import StateStore
from foretell.streams.transform import Transform

TRANSFORM = """
import numpy as np
from foretell.streams.windows import sliding

spend = sliding("1h", every="5m")


def transform_batch(events, state):
    s = state.add(spend, events["amount"])
    return {"x": np.stack([s.sum, s.count], axis=1)}
"""


def keys_of(arguments: argparse.Namespace, random: np.random.Generator) -> np.ndarray:
    """Which key each event has: all alike, or the n-th in proportion to n to the power of -skew."""
    if not arguments.skew:
        return random.integers(0, arguments.keys, arguments.events)
    weights = np.arange(1, arguments.keys + 1) ** -arguments.skew
    return np.searchsorted(np.cumsum(weights) / weights.sum(), random.random(arguments.events))


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    path = folder / "transform.py"
    path.write_text(TRANSFORM)
    transform = Transform.load(path, trust_code=True)
    cache = arguments.cache_mb * 2**20
    store = StateStore.open(folder / "state.db", transform.version, transform.kinds, transform.watermark, cache)
    random = np.random.default_rng(0)
    keys, rows = keys_of(arguments, random), [{"amount": float(a)} for a in random.random(arguments.batch)]
    start_rss, quarter = psutil.Process().memory_info().rss, arguments.events // 4
    spent = {"transform": 0.0, "commit": 0.0}
    longest, counted, commits = 0.0, 0, max(1, 2_048 // arguments.batch)
    for number, at in enumerate(range(0, arguments.events, arguments.batch)):
        batch = [b"user-%d" % key for key in keys[at : at + arguments.batch].tolist()]
        times = np.arange(at, at + len(batch), dtype=np.int64) * 5
        begin = time.perf_counter()
        transform.run(store, "t/0", batch, times, store.advance("t/0", times), rows[: len(batch)])
        middle = time.perf_counter()
        if number % commits == commits - 1:
            store.commit({"t/0": str(at)})
        end = time.perf_counter()
        spent["transform"] += middle - begin
        spent["commit"] += end - middle
        longest, counted = max(longest, end - middle), counted + len(batch)
        if counted >= quarter:
            costs = ", ".join(f"{name} {seconds / counted * 1e6:.2f}" for name, seconds in spent.items())
            rss = (psutil.Process().memory_info().rss - start_rss) >> 20
            disk = sum(file.stat().st_size for file in folder.iterdir()) >> 20
            print(
                f"{at + len(batch):>10,} events: {costs} µs an event; longest commit {longest * 1e3:.0f} ms;"
                f" memory {rss} MiB (estimated {store.nbytes >> 20}), files {disk} MiB",
                flush=True,
            )
            spent, longest, counted = dict.fromkeys(spent, 0.0), 0.0, 0
    store.close()
    gc.collect()
    begin = time.perf_counter()
    store = StateStore.open(folder / "state.db", transform.version, transform.kinds, transform.watermark, cache)
    store.table("t/0", "spend")
    print(f"opened again in {time.perf_counter() - begin:.2f} s")
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=4_000_000)
    parser.add_argument("--batch", type=int, default=512, help="events of a micro-batch")
    parser.add_argument("--cache-mb", type=int, default=512)
    parser.add_argument("--skew", type=float, default=0.0, help="0: every key as often; 1: as words in a text")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        measure(Path(folder), arguments)


if __name__ == "__main__":
    main()
