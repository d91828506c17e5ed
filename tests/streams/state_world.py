"""A transform with one window of each kind, a stream for it, and the plain way to do the same: a dict and a loop."""

from pathlib import Path

import numpy as np

from foretell.streams.state import StateStore
from foretell.streams.transform import Transform
from foretell.streams.watermark import Clock

WINDOWS = """
import numpy as np
from foretell.streams.watermark import Watermark
from foretell.streams.windows import session, sliding, tumbling

time = Watermark(delay="5s", jump="1d", confirm=2)
spend = sliding("60s", every="10s", lateness="5s")
visit = session("20s")
shops = tumbling("30s", distinct=True)
trend = sliding("40s", every="20s", half_life="10s")
"""
ONE = """

def transform(event, state):
    s, v = state.add(spend, event["amount"]), state.add(visit, event["amount"])
    d, t = state.add(shops, event["shop"]), state.add(trend, event["amount"])
    if event.get("poison"):
        raise ValueError("bad shop")
    return {"x": [s.count, s.sum, s.mean, s.min, s.max, v.count, v.sum, d.count, d.distinct, t.count, t.ewma]}
"""
BATCH = """

def transform_batch(events, state):
    s, v = state.add(spend, events["amount"]), state.add(visit, events["amount"])
    d, t = state.add(shops, events["shop"]), state.add(trend, events["amount"])
    if "poison" in events:
        raise ValueError("bad shop")
    columns = [s.count, s.sum, s.mean, s.min, s.max, v.count, v.sum, d.count, d.distinct, t.count, t.ewma]
    return {"x": np.stack(columns, axis=1)}
"""


def load(folder: Path, text: str = WINDOWS + BATCH) -> Transform:
    path = folder / "transform.py"
    path.write_text(text)
    return Transform.load(path, trust_code=True)


def opened(folder: Path, transform: Transform, **settings) -> StateStore:
    settings = {"rule": transform.watermark, **settings}
    return StateStore.open(folder / "state.db", transform.version, transform.kinds, **settings)


def event(key, second, amount):
    """Without an amount where it is None."""
    return key, second * 1000, {"amount": amount, "shop": f"shop {(amount or 0) % 7}"}


def run(store, transform, partition, events):
    keys, times, rows = zip(*events, strict=True)
    times = np.array(times, np.int64)
    return transform.run(store, partition, keys, times, store.advance(partition, times), rows)


def feed(store, transform, partition, events):
    """What the processor does with a micro-batch; gives the features' rows."""
    if not events:
        return []
    features = run(store, transform, partition, events)
    return list(features.inputs["x"]) if features.kept else []


def plainly(transform, events):
    """The same rows without store, cache or batches."""
    clock, entries = Clock(), {}
    for key, time, row in events:
        marks = transform.watermark.advance(clock, np.array([time]))
        clock = marks.after
        held = {}
        for name, window in transform.windows.items():
            (place,) = window.places(np.array([time]))
            entry, mark, value = (
                entries.get((name, key)),
                int(marks.before[0]),
                row["shop" if name == "shops" else "amount"],
            )
            held[name] = window.aggregate.empty
            if marks.ahead[0]:
                continue
            if value is None:
                held[name] = window.peek(entry, place, mark) or held[name]
                continue
            updated = window.update(entry, place, value if name == "shops" else float(value), time, mark)
            if updated is not None:
                entries[name, key], held[name] = updated
        s, v, d, t = (held[name] for name in ("spend", "visit", "shops", "trend"))
        yield np.array(
            [s.count, s.sum, s.mean, s.min, s.max, v.count, v.sum, d.count, d.distinct, t.count, t.ewma], np.float64
        )


def same(rows, expected):
    """Bit for bit, NaN included."""
    return np.array(rows).tobytes() == np.array(expected).tobytes()
