"""A stream in a process of its own, to be killed: python -m tests.streams.child SOURCE SINK DEAD [STATE_FILE].

The ends, the processor and the state are the real ones; the model is a function in this process that takes its time.
It says "done N" on standard output after each commit of N answers in all, and what was restored from a change-log.
"""

import asyncio
import signal
import sys
from pathlib import Path

import numpy as np

from foretell.core.reference import Reference
from foretell.core.tensor import Signature, TensorSpec
from foretell.streams.answering import Plain, Reading
from foretell.streams.asking import Asker
from foretell.streams.ends import open_sink, open_source
from foretell.streams.json_format import JsonFormat
from foretell.streams.pace import Pace
from foretell.streams.processor import Ends, Processor
from foretell.streams.progress import Progress
from foretell.streams.rows import ColumnMap, Columns
from foretell.streams.state import StateStore
from foretell.streams.stateful import Making, Stateful
from foretell.streams.transform import Transform
from foretell.testing import FakeModel, FakePlane

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1,)),))
TRANSFORM = """
from foretell.streams.windows import tumbling
total = tumbling("1h")

def transform(event, state):
    s = state.add(total, event["a"])
    return {"x": [s.sum, s.count]}
"""
MOST = 32
DELAY_S = 0.01


def poisoned(inputs):
    """y = x0 + 10 · x1."""
    return {"y": inputs["x"][:, 0] + np.float32(10) * inputs["x"][:, 1]}


class Loud(Progress):
    def done(self, records, lag):
        super().done(records, lag)
        print(f"done {self.answered}", flush=True)


class Moving(Stateful):
    def restore(self, partition, log, enough):
        position = super().restore(partition, log, enough)
        print(f"restored {partition} {position}", flush=True)
        return position


def answerer(asker: Asker, state: str):
    if not state:
        form = JsonFormat(["a", "b"])
        return Plain(asker, Reading(form), Columns(form, SIGNATURE, ColumnMap({"x": ("a", "b")})))
    code = Path(state).with_suffix(".py")
    code.write_text(TRANSFORM)
    transform = Transform.load(code, True)
    making = Making(transform, None, None, "t")
    reading = Reading(JsonFormat(), "k")
    return Moving(
        asker,
        reading,
        making,
        SIGNATURE,
        lambda: StateStore.open(state, transform.version, transform.kinds, transform.watermark),
    )


async def main(source: str, sink: str, dead: str, state: str = "") -> None:
    pace = Pace(MOST)
    plane = FakePlane(FakeModel("slow", SIGNATURE, poisoned, delay_s=DELAY_S))
    answering = answerer(Asker(plane, Reference("slow"), SIGNATURE, pace), state)
    ends = Ends(open_source(source), open_sink(sink), open_sink(dead))
    memory = answering if isinstance(answering, Stateful) else None
    processor = Processor(ends, answering, pace, Loud(), memory)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, processor.stop)
    print("ready", flush=True)
    await processor.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
