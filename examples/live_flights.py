"""Will a flight that has just left arrive late? A model learns from January, and from what its airport's other flights
of the last hour did. February is replayed as live events, some of them hours late, scored by a batch job, and asked of
a server: three ways, the same answers. With `--kafka HOST:PORT` the events go through a broker, not a pipe.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import skops.io
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from examples.event_feed import replay, replay_on_kafka
from examples.flight_events import departures
from examples.serving import ask, serving
from examples.serving import foretell as command
from foretell.streams.state import StateStore
from foretell.streams.transform import Transform

TRANSFORM = """import numpy as np

from foretell.streams.windows import sliding

airport = sliding("1h", every="5m")


def transform_batch(events, state):
    own, others = events["delay"], state.add(airport, events["delay"])
    mean, worst = (np.where(others.count, of, own) for of in (others.mean, others.max))  # none for a late event
    return {"X": np.stack([own, events["hour"], events["distance"], mean, worst, others.count], axis=1)}
"""


def features(folder: Path, name: str, table: pa.Table) -> np.ndarray:
    """What a stream that begins with these events makes of them: the same file, over state of its own."""
    transform = Transform.load(folder / "transform.py", trust_code=True)
    store = StateStore.open(folder / f"{name}.state", transform.version, transform.kinds, transform.watermark)
    keys, times = [origin.encode() for origin in table["origin"].to_pylist()], table["at"].to_numpy()
    made = transform.run(store, name, keys, times, store.advance(name, times), table.to_pylist())
    store.close()
    print(f"{name}: {table.num_rows:,} departures, {len(made.late)} too late for their window")
    return made.inputs["X"].astype(np.float32)


options = argparse.ArgumentParser(description=__doc__)
options.add_argument("--kafka", metavar="HOST:PORT", help="a broker, such as that of examples/kafka")
kafka = options.parse_args().kafka
with tempfile.TemporaryDirectory() as name:
    folder, store = Path(name), ["--store", str(Path(name, "store"))]
    Path(folder, "transform.py").write_text(TRANSFORM)
    known, new = departures(month=1), departures(month=2)
    rows, truth = features(folder, "january", known), known["late"].to_numpy()
    skops.io.dump(HistGradientBoostingClassifier(max_iter=30, random_state=0).fit(rows, truth), folder / "late.skops")
    print(command("add", "late", str(folder / "late.skops"), *store))
    rows = features(folder, "february", new)
    pq.write_table(pa.table({"X": rows.tolist()}), folder / "history.parquet")
    print(command("batch", "late", str(folder / "history.parquet"), str(folder / "scored"), *store))
    batch = np.array(pq.read_table(folder / "scored")["probabilities"].to_pylist())
    files = ["--state", str(folder / "transform.py"), "--dead-letter", str(folder / "dead.jsonl"), *store]
    flags = ["--key", "origin", "--event-time", "at", "--trust-code", *files]
    events = [json.dumps(event).encode() for event in new.drop_columns(["late"]).to_pylist()]
    answers = replay_on_kafka(kafka, events, "late", *flags) if kafka else replay(events, "late", *flags)
    stream = np.array([answer["outputs"]["probabilities"] for answer in answers])
    with serving("late", *store) as url:
        online = np.reshape(ask(url, "late", rows[:500].tolist())["probabilities"], (-1, 2))

print(f"AUC {roc_auc_score(new['late'].to_numpy(), stream[:, 1]):.3f} over {len(stream):,} live events")
for name, other in (("batch", batch), ("online", online)):
    print(f"stream and {name} differ by at most {np.abs(stream[: len(other)] - other).max():.1g}")
    np.testing.assert_allclose(stream[: len(other)], other, atol=1e-6)
