"""The processor itself over ends in memory: whatever step it dies after, or loses its ends, no promise is broken."""

import asyncio
import contextlib
import os

import pytest

from foretell.core.errors import StateUnwritable
from foretell.core.reference import Reference
from foretell.core.tensor import Signature, TensorSpec
from foretell.streams.answering import Reading
from foretell.streams.asking import Asker
from foretell.streams.commit import Guarantee
from foretell.streams.files import FileSink, FileSource
from foretell.streams.json_format import JsonFormat
from foretell.streams.pace import Pace
from foretell.streams.processor import Ends, Processor
from foretell.streams.progress import Progress
from foretell.streams.protocol import StreamReset
from foretell.streams.retry import Backoff
from foretell.streams.stateful import Making, Stateful
from foretell.testing import FakeModel, FakePlane
from tests.streams.conftest import lines
from tests.streams.memory_ends import (
    Broker,
    Doubling,
    MemoryLetters,
    MemorySink,
    MemorySource,
    Summing,
)
from tests.streams.state_world import load, opened

COUNTS = {"t/0": 11, "t/1": 8}


class Crash(Exception):
    pass


def reset():
    return StreamReset("the ends are gone")


def run(broker, answerer, sink=None, source=None, waits=Backoff(0.0, 0.0)) -> Guarantee:
    ends = Ends(source or MemorySource(broker), sink or MemorySink(broker, True), MemoryLetters(broker, False))
    memory = answerer if isinstance(answerer, Summing) else None
    processor = Processor(ends, answerer, Pace(3), Progress(), memory, waits)
    asyncio.run(processor.run())
    return processor.guarantee


@pytest.mark.parametrize("where", ["open", "answer"])
def test_a_disk_that_is_full_wherever_state_is_touched_is_waited_for(where):
    class Full(Summing):
        refusals = {"open": 0, "answer": 0} | {where: 2}

        def refuse(self, here):
            if self.refusals[here]:
                self.refusals[here] -= 1
                raise StateUnwritable("full")

        def open(self):
            self.refuse("open")
            return super().open()

        async def answer(self, messages):
            self.refuse("answer")
            return await super().answer(messages)

    broker, undisturbed = Broker(COUNTS), Broker(COUNTS)
    run(broker, Full(broker))
    run(undisturbed, Summing(undisturbed))
    assert (broker.out, broker.sums) == (undisturbed.out, undisturbed.sums)


def test_waits_grow_while_nothing_is_committed_and_begin_anew_after_that():
    told = []

    class Told(Backoff):
        def waits(self):
            for wait_s in super().waits():
                told.append(wait_s)
                yield 0.0

    run(Broker({"t/0": 90}, range(25, 400, 25), reset), Doubling(), waits=Told(1.0, 1e9))
    assert set(told) == {1.0}
    told.clear()
    run(Broker({"t/0": 3}, range(1, 5), reset), Doubling(), waits=Told(1.0, 1e9))
    assert max(told) == 8.0


def test_an_end_that_cannot_be_closed_leaves_no_other_open():
    closed = []

    class Stuck(MemorySource):
        async def close(self):
            raise Crash

    class Closing(MemorySink):
        async def close(self):
            closed.append("sink")

    class Kept(Summing):
        def close(self):
            closed.append("state")

    broker = Broker(COUNTS)
    with pytest.raises(Crash):
        run(broker, Kept(broker), Closing(broker, True), Stuck(broker))
    assert closed == ["sink", "state"]


def test_a_file_that_was_closed_is_not_closed_again_when_its_number_is_another_files(tmp_path):
    async def twice():
        sink = FileSink(tmp_path / "out.jsonl")
        await sink.open()
        await sink.close()
        other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
        await sink.close()
        os.close(other)

    asyncio.run(twice())


@pytest.mark.parametrize("when", ["at its start", "at a new partition"])
def test_a_stream_waits_for_a_disk_that_is_full(tmp_path, small_disk, when):
    """The file of the state alone is on the disk."""
    filler = small_disk / "filler"
    faults = []

    def fill():
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * 512)

    class Watched(Progress):
        def opened(self):
            super().opened()
            if when == "at a new partition" and not faults:
                fill()

        def fault(self, reason):
            faults.append(reason)
            filler.unlink(missing_ok=True)

    if when == "at its start":
        fill()
    (tmp_path / "in.jsonl").write_text("".join(f'{{"k": "a", "x": {n}}}\n' for n in range(3)))
    transform = load(
        tmp_path,
        "from foretell.streams.windows import tumbling\nall = tumbling('9999d')\n"
        "def transform(event, state): return {'x': state.add(all, event['x']).sum}",
    )
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
    pace, waits = Pace(2), Backoff(0.001, 0.001)
    plane = FakePlane(FakeModel("m", signature, lambda inputs: {"y": inputs["x"]}))
    stateful = Stateful(
        Asker(plane, Reference("m"), signature, pace, waits),
        Reading(JsonFormat(), "k"),
        Making(transform, None),
        signature,
        lambda: opened(small_disk, transform),
    )
    source = FileSource(tmp_path / "in.jsonl", "g", follow=False)
    ends = Ends(source, FileSink(tmp_path / "out.jsonl"), FileSink(tmp_path / "dead.jsonl"))
    asyncio.run(Processor(ends, stateful, pace, Watched(), stateful, waits).run())
    assert "Nothing is lost: make room" in faults[0]
    assert [line["outputs"]["y"] for line in lines(tmp_path / "out.jsonl")] == [0.0, 1.0, 3.0]
