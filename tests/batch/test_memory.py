"""What a job holds at a time is bounded by bytes, not by rows: of what it reads, of what it tries, of its parts."""

import asyncio
import os
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from foretell.batch.layout import Layout
from foretell.batch.question import RowQuestion
from foretell.batch.readers import BATCH_BYTES, open_input
from foretell.batch.scoring import RowScorer
from foretell.batch.source import LOOK_BYTES, Source
from foretell.batch.tuning import MOST_BYTES, PART_BYTES, Sizes
from foretell.core.column_map import ColumnMap
from foretell.core.reference import parse_reference
from foretell.core.tensor import Signature, TensorSpec

PLAIN = {"compression": "none", "use_dictionary": False}


def most_held(source: Source, columns: list[str]) -> int:
    """Bytes that Arrow holds while a file is read, at most."""
    before, held = pa.total_allocated_bytes(), 0
    with open_input(source.files[0]) as reader:
        for _ in reader.read(0, columns):
            held = max(held, pa.total_allocated_bytes() - before)
    return held


def test_a_large_row_group_of_large_rows_is_read_in_pieces(tmp_path):
    rows = pa.array([bytes(16_000)] * 8192)
    pa.parquet.write_table(pa.table({"a": rows}), tmp_path / "in.parquet", **PLAIN)
    del rows
    assert most_held(Source([str(tmp_path / "in.parquet")]), ["a"]) < 3 * BATCH_BYTES


def test_a_large_row_group_of_many_columns_is_read_in_pieces(tmp_path):
    column = pa.array(np.random.default_rng(0).random(300_000))
    pa.parquet.write_table(pa.table({f"c{n}": column for n in range(64)}), tmp_path / "in.parquet", **PLAIN)
    del column
    assert most_held(Source([str(tmp_path / "in.parquet")]), [f"c{n}" for n in range(64)]) < 4 * BATCH_BYTES


@pytest.fixture
def photos(tmp_path) -> Source:
    """100 files of 1 MiB, all holes."""
    for number in range(100):
        with (tmp_path / f"{number:03d}.png").open("wb") as file:
            os.truncate(file.fileno(), 2**20)
    return Source([str(tmp_path)])


def layout_of(world, source: Source, reads: list[str], where: str = "") -> Layout:
    spec = world.spec("linear", source.files[0].path, where=where)
    return Layout(spec, source.schema, reads, pa.schema([]), set())


def test_files_are_read_and_looked_at_by_their_bytes(linear_world, photos):
    with open_input(photos.files[0]) as reader:
        batches = reader.read(0, ["content"])
        assert max(batch.nbytes for batch in batches) <= BATCH_BYTES + 1000
    seen = photos.look(layout_of(linear_world, photos, ["content"]), 8192)
    assert 0 < seen.nbytes < LOOK_BYTES + BATCH_BYTES
    assert photos.look(layout_of(linear_world, photos, ["content"]), 3).num_rows == 3


def test_the_search_for_rows_that_a_filter_lets_through_has_an_end(linear_world, photos, monkeypatch):
    monkeypatch.setattr("foretell.batch.source.SEARCH_BYTES", 20 * 2**20)
    files = photos.files[0].filesystem
    reading, asked = files.cat_ranges, []
    monkeypatch.setattr(
        files, "cat_ranges", lambda names, *more, **how: asked.extend(names) or reading(names, *more, **how)
    )
    assert photos.look(layout_of(linear_world, photos, ["content"], "1 > 2"), 8192).num_rows == 0
    assert 20 <= len(asked) < 40


class FakePlane:
    """Answers each row with `answer` numbers; notes the requests."""

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.asked: list = []

    async def infer(self, reference, request):
        (array,) = request.inputs.values()
        self.asked.append(array)
        outputs = {"y": np.zeros((len(array), self.answer), np.float32)}
        return SimpleNamespace(outputs=outputs, timing=SimpleNamespace(compute_s=0.0))


def scorer(plane: FakePlane, datatype: str = "FP32", pads: bool = False) -> RowScorer:
    signature = Signature((TensorSpec("x", datatype, (-1,)),), (TensorSpec("y", "FP32", (-1, plane.answer)),))
    question = RowQuestion(signature, ColumnMap({"x": ("x",)}), pads)
    return RowScorer(plane, parse_reference("m"), question, 1, 0.0)


@pytest.mark.parametrize("answer", [2**18, 2**24])
def test_large_answers_make_small_requests_and_small_parts(answer):
    plane, size = FakePlane(answer), 4 * answer
    table = pa.table({"x": pa.array(np.zeros(4096, np.float32))})
    chosen = asyncio.run(scorer(plane).sizes(table, 4.0))
    assert chosen.batch_rows * size <= max(MOST_BYTES, size)
    assert chosen.part_rows * size <= max(PART_BYTES, size)
    assert {len(rows) for rows in plane.asked} == {16}, "no larger request is tried"


def test_texts_of_middling_length_are_tried():
    lengths = np.random.default_rng(0).permutation(1024) + 1
    plane = FakePlane(1)
    asyncio.run(scorer(plane, "BYTES", pads=True).sizes(pa.table({"x": ["a" * length for length in lengths]}), 500.0))
    assert len(plane.asked) > 1
    for array in plane.asked:
        assert np.mean([len(text) for text in array]) == pytest.approx(512, abs=150)


def test_where_no_row_can_be_tried_parts_are_large_all_the_same():
    chosen = asyncio.run(scorer(FakePlane(1)).sizes(pa.table({"x": pa.array([], pa.float32())}), 100.0))
    assert chosen.part_rows > 1000
    chosen = asyncio.run(scorer(FakePlane(1)).sizes(pa.table({"x": pa.array([], pa.float32())}), 2.0**20))
    assert chosen == Sizes(8, 32)


def test_a_part_is_read_in_one_piece_where_it_may_be_in_memory(tmp_path):
    column = pa.array(np.random.default_rng(0).random((200, 20_000), dtype=np.float32).tolist(), pa.list_(pa.float32()))
    path = tmp_path / "in.parquet"
    pa.parquet.write_table(pa.table({"a": column}), path, row_group_size=70, **PLAIN)
    with open_input(Source([str(path)]).files[0]) as reader:
        assert [batch.num_rows for batch in reader.read(0, ["a"], 190)] == [190, 10]
        rows = [batch.num_rows for batch in reader.read(0, ["a"], 200 * 2**20)]
        assert max(rows) * 80_000 <= BATCH_BYTES, "a part that is too large is read in pieces"
        assert sum(rows) == 200
