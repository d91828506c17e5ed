"""A stream in a process of its own, to be killed: python -m tests.streams.end_child SOURCE SINK DEAD.

y = 2 · x, by a function in this process that takes its time. Also the parts of which tests make streams of their own.
"""

import asyncio
import signal
import sys

import numpy as np

from foretell.core.column_map import ColumnMap
from foretell.core.reference import Reference
from foretell.core.tensor import Signature, TensorSpec
from foretell.streams.answering import Plain, Reading
from foretell.streams.asking import Asker
from foretell.streams.ends import open_sink, open_source
from foretell.streams.json_format import JsonFormat
from foretell.streams.pace import Pace
from foretell.streams.processor import Ends, Processor
from foretell.streams.progress import Progress
from foretell.streams.protocol import Sink, Source
from foretell.streams.retry import Backoff
from foretell.streams.rows import Columns
from foretell.testing import FakeModel, FakePlane

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))


def double(inputs):
    return {"y": inputs["x"] * np.float32(2)}


def stream(source: str | Source, sink: str | Sink, dead: str, most: int = 64, delay_s: float = 0.0) -> Processor:
    """A stream with quick retries."""
    form, pace, waits = JsonFormat(["x"]), Pace(most), Backoff(0.02, 0.1)
    plane = FakePlane(FakeModel("double", SIGNATURE, double, delay_s=delay_s))
    asker = Asker(plane, Reference("double"), SIGNATURE, pace, waits)
    answerer = Plain(asker, Reading(form), Columns(form, SIGNATURE, ColumnMap()))
    start = open_source(source) if isinstance(source, str) else source
    end = open_sink(sink) if isinstance(sink, str) else sink
    return Processor(Ends(start, end, open_sink(dead)), answerer, pace, Progress(), None, waits)


async def main(source: str, sink: str, dead: str) -> None:
    processor = stream(source, sink, dead, 8, 0.01)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, processor.stop)
    await processor.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
