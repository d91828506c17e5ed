"""Observations survive the way to Parquet and back; a bad disk costs rows that are counted, nothing else."""

import datetime
import logging
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from foretell.core.observation import TokenUse
from foretell.telemetry import parquet
from foretell.telemetry.parquet import ParquetWriter, read_observations, unpack_tensors
from tests.telemetry.observations import NOON, observation


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_observations_come_back_as_they_were(tmp_path):
    text = np.array([b"plain", b"\xff\x00"], dtype=object)
    image = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    log = ParquetWriter(tmp_path)
    log.consume(
        [
            observation(request_id="a", error="no"),
            observation(request_id="b", inputs={"text": text, "image": image}, outputs={"y": np.array([1, 2])}),
        ]
    )
    log.close()
    plain, sampled = read_observations(tmp_path).to_pylist()
    assert plain["at"] == datetime.datetime.fromtimestamp(NOON, datetime.UTC)
    expected = {
        "model": "digits", "version": "3", "outcome": "done", "total_s": 0.0031, "queue_s": 0.001,
        "compute_s": 0.002, "rows": 2, "batch_rows": 8, "cached": False, "protocol": "http", "request_id": "a",
        "cost_dollars": 1e-6, "error": "no", "inputs": None, "outputs": None,
    }  # fmt: skip
    nothing = {name: v for name, v in plain.items() if name.endswith(("_tokens", "_gap_s")) or name == "first_token_s"}
    assert set(nothing.values()) == {0}
    assert {name: v for name, v in plain.items() if name != "at" and name not in nothing} == expected
    assert unpack_tensors(plain["inputs"]) is None
    inputs = unpack_tensors(sampled["inputs"])
    assert inputs["text"].tolist() == text.tolist()
    np.testing.assert_array_equal(inputs["image"], image)
    assert inputs["image"].dtype == np.float32
    assert unpack_tensors(sampled["outputs"])["y"].tolist() == [1, 2]


def test_rows_lie_in_the_folder_of_their_own_hour(tmp_path):
    log = ParquetWriter(tmp_path)
    log.consume([observation(at=NOON - 1), observation(at=NOON), observation(at=NOON + 3599.9)])
    log.close()
    rows = {path.split("/part-")[0]: pq.ParquetFile(tmp_path / path).metadata.num_rows for path in files(tmp_path)}
    assert rows == {"date=2026-09-22/hour=11": 1, "date=2026-09-22/hour=12": 2}


def test_a_file_is_written_when_enough_rows_wait(tmp_path):
    log = ParquetWriter(tmp_path, max_rows=4)
    log.consume([observation()] * 3)
    assert files(tmp_path) == []
    log.consume([observation()])
    log.consume([observation()] * 4)
    assert len(files(tmp_path)) == 2


def test_a_file_is_written_when_enough_bytes_wait(tmp_path):
    log = ParquetWriter(tmp_path, max_bytes=5000)
    log.consume([observation()])
    assert files(tmp_path) == []
    log.consume([observation(inputs={"x": np.zeros(1000)})])
    assert len(files(tmp_path)) == 1


def test_a_file_is_written_when_its_first_row_is_old_enough(tmp_path):
    now = [0.0]
    log = ParquetWriter(tmp_path, max_age_s=60, clock=lambda: now[0])
    log.consume([observation()])
    now[0] = 59
    log.tick()
    assert files(tmp_path) == []
    now[0] = 60
    log.tick()
    assert len(files(tmp_path)) == 1


def test_an_unfinished_file_is_not_read(tmp_path, monkeypatch):
    def dies(batches, path):
        path.write_bytes(b"PAR1 half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(parquet, "_write_file", dies)
    log = ParquetWriter(tmp_path)
    log.consume([observation()])
    with pytest.raises(KeyboardInterrupt):
        log.close()
    assert len(files(tmp_path)) == 1
    assert read_observations(tmp_path).num_rows == 0


def test_an_unwritable_folder_is_counted_and_logged_once(tmp_path, caplog):
    blocked = tmp_path / "a-file"
    blocked.write_text("in the way")
    log = ParquetWriter(blocked, max_rows=1)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            log.consume([observation()])
    assert log.dropped == 3
    assert len(caplog.records) == 1


def test_a_full_disk_leaves_no_half_file_and_writing_goes_on_when_there_is_room(tmp_path, monkeypatch, caplog):
    write = parquet._write_file

    def full(batches, path):
        path.write_bytes(b"PAR1 half a file")
        raise OSError(28, "No space left on device")

    log = ParquetWriter(tmp_path, max_rows=1)
    monkeypatch.setattr(parquet, "_write_file", full)
    log.consume([observation()])
    assert files(tmp_path) == []
    assert "No space left on device" in caplog.text
    monkeypatch.setattr(parquet, "_write_file", write)
    log.consume([observation()])
    assert read_observations(tmp_path).num_rows == 1
    assert log.dropped == 1


def test_an_empty_folder_reads_as_an_empty_table_with_the_same_columns(tmp_path):
    table = read_observations(tmp_path)
    assert table.num_rows == 0
    assert table.schema == parquet.schema()


def test_two_writers_with_the_same_process_id_do_not_overwrite_each_other(tmp_path):
    for _ in range(2):
        log = ParquetWriter(tmp_path)
        log.consume([observation()])
        log.close()
    assert read_observations(tmp_path).num_rows == 2


def test_writing_observations_does_not_load_pandas(tmp_path):
    code = (
        "import sys, numpy as np; from foretell.telemetry.parquet import ParquetWriter;"
        "from tests.telemetry.observations import observation; w = ParquetWriter(sys.argv[1]);"
        "w.consume([observation(inputs={'x': np.zeros(3)})]); w.close(); assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert read_observations(tmp_path).num_rows == 1


texts = st.text(max_size=5)
arrays = st.one_of(
    hnp.arrays(st.sampled_from([np.float32, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)),
    st.lists(st.binary(max_size=4), max_size=3).map(lambda items: np.array([*items, None], dtype=object)[:-1]),
)
sampled = st.none() | st.dictionaries(texts.filter(lambda s: s.isprintable()), arrays, max_size=2)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(texts, sampled, sampled, st.booleans()), min_size=1, max_size=8))
def test_any_batch_comes_back_as_it_was(rows):
    with tempfile.TemporaryDirectory() as folder:
        log = ParquetWriter(folder)
        log.consume([observation(request_id=i, inputs=x, outputs=y, cached=c) for i, x, y, c in rows])
        log.close()
        table = read_observations(folder)
    table.validate(full=True)
    for found, (request_id, inputs, outputs, cached) in zip(table.to_pylist(), rows, strict=True):
        assert (found["request_id"], found["cached"]) == (request_id, cached)
        for cell, given_tensors in ((found["inputs"], inputs), (found["outputs"], outputs)):
            back = unpack_tensors(cell)
            assert (back is None) == (given_tensors is None)
            for name, array in (given_tensors or {}).items():
                np.testing.assert_array_equal(back[name], array)
                assert back[name].dtype == array.dtype


def test_a_name_that_is_not_unicode_does_not_lose_the_batch(tmp_path):
    log = ParquetWriter(tmp_path)
    log.consume([observation(request_id="\ud800"), observation()])
    log.close()
    assert read_observations(tmp_path).column("request_id").to_pylist() == ["?", "r1"]


def test_generations_have_their_tokens_in_columns_and_others_zeros(tmp_path):
    use = TokenUse(100, 60, 20, 8, 6, 0.2, np.array([0.01, 0.03], np.float32).tobytes())
    writer = ParquetWriter(tmp_path)
    writer.consume([observation(tokens=use), observation()])
    writer.close()
    table = read_observations(tmp_path)
    assert table.schema == parquet.schema()
    assert table["completion_tokens"].to_pylist() == [20, 0]
    assert table["accepted_tokens"].to_pylist() == [6, 0]
    assert table["first_token_s"].to_pylist() == [0.2, 0.0]
    assert np.allclose(table["mean_gap_s"].to_pylist(), [0.02, 0.0])
    assert np.allclose(table["longest_gap_s"].to_pylist(), [0.03, 0.0])
