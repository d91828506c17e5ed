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
    MemoryTransactions,
    Summing,
)
from tests.streams.state_world import load, opened

COUNTS = {"t/0": 11, "t/1": 8}


class Crash(Exception):
    pass


def reset():
    return StreamReset("the ends are gone")


def process(broker, transactional, remembers, stateful) -> Guarantee:
    sink = MemoryTransactions(broker, remembers) if transactional else MemorySink(broker, remembers)
    return run(broker, Summing(broker) if stateful else Doubling(), sink)


def run(broker, answerer, sink=None, source=None, waits=Backoff(0.0, 0.0)) -> Guarantee:
    ends = Ends(source or MemorySource(broker), sink or MemorySink(broker, True), MemoryLetters(broker, False))
    memory = answerer if isinstance(answerer, Summing) else None
    processor = Processor(ends, answerer, Pace(3), Progress(), memory, waits)
    asyncio.run(processor.run())
    return processor.guarantee


@pytest.mark.parametrize("fault", [Crash, reset], ids=["crash", "reset"])
@pytest.mark.parametrize("stateful", [False, True], ids=["stateless", "stateful"])
@pytest.mark.parametrize(
    ("transactional", "remembers", "promised"),
    [(True, False, "exactly once"), (False, True, "effectively once"), (False, False, "at least once")],
    ids=["exactly once", "effectively once", "at least once"],
)
def test_a_fault_after_any_step_breaks_no_promise(transactional, remembers, promised, stateful, fault):
    undisturbed = Broker(COUNTS)
    assert process(undisturbed, transactional, remembers, stateful) == promised
    repeated = False
    for first in range(1, undisturbed.steps + 1):
        for later in (0, 1, 4, 9):
            broker = Broker(COUNTS, {first, first + later}, fault)
            for _ in range(3):
                try:
                    process(broker, transactional, remembers, stateful)
                    break
                except Crash:
                    pass
            else:
                raise AssertionError("it died without a reason")
            assert broker.buried == undisturbed.buried
            if not remembers:  # else the sink may know what the source does not, and nothing comes again to commit
                assert broker.committed == undisturbed.committed
            assert (broker.sums, broker.positions) == (undisturbed.sums, undisturbed.positions)
            for name in COUNTS:
                found, wanted = broker.answers(name), undisturbed.answers(name)
                repeated |= found != wanted
                if promised == "at least once":
                    assert list(dict.fromkeys(found)) == wanted, (
                        "none lost, in order, and the same when they come again"
                    )
                else:
                    assert found == wanted
    assert repeated == (promised == "at least once"), "the faults are felt"


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
