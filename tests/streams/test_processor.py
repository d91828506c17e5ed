"""The loop over real files and a fake model: every message answered or buried; test_crashes.py has all the faults."""

import asyncio
import json

import numpy as np
import pytest

from foretell.core.column_map import ColumnMap
from foretell.core.errors import NotReady, StreamError
from foretell.core.reference import Reference
from foretell.core.tensor import Signature, TensorSpec
from foretell.streams.answering import Plain, Reading
from foretell.streams.asking import Asker
from foretell.streams.files import FileSink, FileSource
from foretell.streams.json_format import JsonFormat
from foretell.streams.message import Refusal
from foretell.streams.pace import Pace
from foretell.streams.processor import Ends, Processor
from foretell.streams.progress import Progress
from foretell.streams.retry import Backoff
from foretell.streams.rows import Columns
from foretell.testing import FakeModel, FakePlane

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))


def double(inputs):
    return {"y": inputs["x"] * np.float32(2)}


class Crash(Exception):
    pass


class CrashingSource(FileSource):
    """Dies instead of its nth commit, after the answers are safe."""

    commits_left = 1

    async def commit(self, positions):
        if self.commits_left == 0:
            raise Crash
        self.commits_left -= 1
        await super().commit(positions)


def process(folder, source=None, plane=None, sink=None, most=2, limit=10_000):
    plane = plane or FakePlane(FakeModel("double", SIGNATURE, double))
    form, pace, waits = JsonFormat(["x"]), Pace(most), Backoff(0.001, 0.001)
    asker = Asker(plane, Reference("double"), SIGNATURE, pace, waits)
    answerer = Plain(asker, Reading(form, "", limit), Columns(form, SIGNATURE, ColumnMap()))
    source = source or FileSource(folder / "in.jsonl", "g", follow=False)
    ends = Ends(source, sink or FileSink(folder / "out.jsonl"), FileSink(folder / "dead.jsonl"))
    progress = Progress()
    asyncio.run(Processor(ends, answerer, pace, progress, None, waits).run())
    return progress.counts()


def answers(folder):
    return [json.loads(line)["outputs"]["y"] for line in (folder / "out.jsonl").read_text().splitlines()]


def dead(folder):
    return [json.loads(line) for line in (folder / "dead.jsonl").read_text().splitlines()]


def test_every_message_is_answered_in_order(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"x": {n}}}\n' for n in range(7)))
    process(tmp_path)
    assert answers(tmp_path) == [2.0 * n for n in range(7)]


DEEP = "[" * 100_000 + "]" * 100_000
POISON = {
    "text": '{"x": "no"}',
    "half": "{",
    "no x": '{"y": 1}',
    "list": '{"x": [1, 2]}',
    "two": '{"x": 1},{"x": 2}',
    "no text": "\ud800",
    "nested": f'{{"x": {DEEP}}}',
    "nested, in a field that nobody reads": f'{{"x": 1, "y": {DEEP}}}',
    "huge": f'{{"x": 1{"0" * 400}}}',
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_a_poison_message_is_buried_with_its_reason_and_blocks_nobody(tmp_path, poison):
    lines = f'{{"x": 1}}\n{poison}\n{{"x": 3}}\n'
    (tmp_path / "in.jsonl").write_bytes(lines.encode("utf-8", "surrogatepass"))
    process(tmp_path, most=10, limit=10**6)
    assert answers(tmp_path) == [2.0, 6.0]
    (letter,) = dead(tmp_path)
    assert letter["reason"] and letter["position"] == "9"


def test_what_was_answered_is_not_answered_again(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"x": 1}\n')
    process(tmp_path)
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('{"x": 2}\n')
    process(tmp_path)
    assert answers(tmp_path) == [2.0, 4.0]


def test_a_crash_between_answer_and_commit_repeats_nothing_in_a_file(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"x": {n}}}\n' for n in range(7)))
    with pytest.raises(Crash):
        process(tmp_path, CrashingSource(tmp_path / "in.jsonl", "g", follow=False))
    found = answers(tmp_path)
    assert len(found) >= 4 and found == [2.0 * n for n in range(len(found))]
    process(tmp_path)
    assert answers(tmp_path) == [2.0 * n for n in range(7)]


def test_half_a_line_left_by_a_kill_is_cut_off(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "out.jsonl").write_text('{"source": "half')
    process(tmp_path)
    assert answers(tmp_path) == [2.0]


def test_a_file_knows_whose_answers_it_holds(tmp_path):
    lines = [("a@1", 10), ("b@2", 20), ("a@2", 30)]
    text = "".join(f'{{"model":"{model}","source":"s","next":"{at}"}}\n' for model, at in lines)
    (tmp_path / "out.jsonl").write_text(text)

    async def held(owner):
        sink = FileSink(tmp_path / "out.jsonl", owner)
        found = await sink.open()
        await sink.close()
        return found

    assert [asyncio.run(held(owner)) for owner in ("a", "b", "c")] == [{"s": "30"}, {"s": "20"}, {}]


def test_a_sink_that_refuses_a_message_buries_it(tmp_path):
    class Refusing(FileSink):
        async def publish(self, records):
            kept = [record for record in records if b'"y":4.0' not in record.value]
            await super().publish(kept)
            return [Refusal(record.message, "too large") for record in records if record not in kept]

    (tmp_path / "in.jsonl").write_text('{"x": 1}\n{"x": 2}\n')
    process(tmp_path, sink=Refusing(tmp_path / "out.jsonl"))
    assert answers(tmp_path) == [2.0]
    assert dead(tmp_path)[0]["reason"] == "too large"


def test_a_full_disk_is_waited_for_and_every_answer_is_there_once(tmp_path, small_disk):
    rows = 200
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"x": n}) + "\n" for n in range(rows)))
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (2**20 - 8 * 2**12))
    full = []

    class Watched(FileSink):
        async def publish(self, records):
            try:
                return await super().publish(records)
            except StreamError as error:
                full.append((error.message, (small_disk / "out.jsonl").read_bytes()))
                filler.unlink(missing_ok=True)
                raise

    counts = process(tmp_path, sink=Watched(small_disk / "out.jsonl"), most=50)
    assert "No space left on device" in full[0][0]
    assert full[0][1].endswith(b"\n"), "no part of a batch is left behind"
    assert answers(small_disk) == [2.0 * n for n in range(rows)]
    assert (counts.answered, counts.dead) == (rows, 0)


def test_a_model_and_a_sink_that_are_away_for_a_while_are_waited_for(tmp_path):
    class Away(FileSink):
        times = 2

        async def publish(self, records):
            if self.times:
                self.times -= 1
                raise StreamError("away")
            return await super().publish(records)

    class Loading(FakePlane):
        times = 2

        async def infer(self, reference, request):
            if self.times:
                self.times -= 1
                raise NotReady("loading")
            return await super().infer(reference, request)

    (tmp_path / "in.jsonl").write_text('{"x": 1}\n')
    plane = Loading(FakeModel("double", SIGNATURE, double))
    process(tmp_path, plane=plane, sink=Away(tmp_path / "out.jsonl"))
    assert answers(tmp_path) == [2.0]


def test_inputs_that_fail_in_a_way_that_nobody_thought_of_blame_their_row_alone():
    plane = FakePlane(FakeModel("double", SIGNATURE, double))
    asker = Asker(plane, Reference("double"), SIGNATURE, Pace(8), Backoff(0.001, 0.001))
    values = [1.0, {}, 3.0]
    made = asyncio.run(asker.ask(3, lambda part: {"x": np.array([np.float32(value) for value in values[part]])}))
    assert list(made.wrong) == [1]
    assert "the event cannot be read (TypeError" in made.wrong[1]
