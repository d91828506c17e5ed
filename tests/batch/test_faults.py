"""Bad input and faults, each provoked: what is refused before anything runs, what fails a row, what stops a job, and
that a job which stopped goes on where it was.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from foretell.batch.layout import Layout
from foretell.batch.output import OutputFolder
from foretell.batch.owner import gone, this_process
from foretell.batch.protocol import temporary_name
from foretell.batch.readers import open_input
from foretell.batch.source import Source
from foretell.batch.spec import Plan, encode
from foretell.batch.work import Work
from foretell.core.errors import ConfigError, Conflict, ForetellError, InvalidInput, NotFound, PackageError
from tests.batch.conftest import SIGNATURE

SMALL = ("--trust-code", "--batch-rows", 50, "--part-rows", 100)
X = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def refused(world, source, says, model="linear", error=InvalidInput, **more):
    """A job that is refused before it is a job: nothing is written, nothing is in the store."""
    with pytest.raises(error, match=says):
        world.batch(model, source, **more)
    assert world.store.jobs.all() == []
    assert not (world.folder / "out").exists()


# What is refused before anything runs


@pytest.mark.parametrize(
    ("columns", "more", "says"),
    [
        ({"Y": X}, {}, 'no column feeds input "X".*COLUMN=X'),
        ({"X": X}, {"map": ["Z=X"]}, 'no column "Z". Known: X'),
        ({"X": X}, {"map": ["X=Z"]}, 'no input "Z" to map to'),
        ({"X": ["a", "b"]}, {}, "holds string, the model expects FP32"),
        ({"X": [["a"], ["b"]]}, {}, "holds string, the model expects FP32"),
        ({"X": [1.0]}, {}, "single values, the model expects 2 values a row"),
        ({"X": X}, {"keep": ("idd",)}, '--keep: no column "idd"'),
        ({"X": X}, {"label": "truht"}, '--label: no column "truht"'),
        ({"X": X, "t": ["a", "b", "c"]}, {"label": "t"}, "no output can be compared"),
        ({"X": X, "t": X}, {"label": "t=z"}, 'no output "z"'),
        ({"X": X}, {"where": "mnth > 3"}, 'no column "mnth"'),
        ({"X": X, "id": ["a", "b", "c"]}, {"where": "id > 3"}, "does not fit the columns"),
        ({"X": X}, {"where": "month >"}, "cannot be read: invalid syntax"),
        ({"X": X}, {"where": "__import__('os').system('true')"}, "cannot stand in a filter"),
        ({"X": X}, {"where": "X is 3"}, 'only None can follow "is"'),
    ],
)
def test_what_does_not_fit_is_refused_before_a_job_is_made(linear_world, columns, more, says):
    refused(linear_world, linear_world.table("in.parquet", **columns), says, **more)


def test_an_input_that_is_not_there_or_of_no_known_form_is_refused(linear_world):
    folder = linear_world.folder
    refused(linear_world, folder / "nowhere.parquet", "cannot be read")
    refused(linear_world, folder / "*.parquet", "no file of a known form")
    (folder / "in.xls").write_text("")
    refused(linear_world, folder / "in.xls", "its form is unknown; known are .parquet")
    (folder / "empty").mkdir()
    refused(linear_world, folder / "empty", "no file of a known form")
    refused(linear_world, "nosuch://bucket/x.parquet", "nosuch")


def test_inputs_of_different_forms_or_partitions_are_refused(linear_world):
    linear_world.table("a/in.parquet", X=X)
    (linear_world.folder / "a/in.csv").write_text("X\n1\n")
    refused(linear_world, linear_world.folder / "a", "mixes csv and parquet")
    linear_world.table("b/month=1/in.parquet", X=X)
    linear_world.table("b/day=1/in.parquet", X=X)
    refused(linear_world, linear_world.folder / "b", "the partitions differ: day and month")


def test_files_that_are_rows_are_refused_where_the_model_takes_numbers(linear_world):
    (linear_world.folder / "in.png").write_bytes(b"")
    says = r'takes X FP32\[\?, 2\]. Add it again with --config .* \(kind = "image" decodes pictures'
    refused(linear_world, linear_world.folder / "in.png", says)


def test_a_model_that_is_not_there_is_refused(linear_world):
    refused(linear_world, linear_world.table("in.parquet", X=X), 'no model "linaer"', model="linaer", error=NotFound)


def test_an_output_that_exists_is_refused(linear_world):
    source = linear_world.table("in.parquet", X=X)
    out = linear_world.folder / "out"
    out.write_text("")
    with pytest.raises(Conflict, match="is a file; OUTPUT is a folder"):
        linear_world.batch("linear", source)
    out.unlink()
    out.mkdir()
    (out / "precious.txt").write_text("")
    for resume in (False, True):  # without a job of this store there is nothing to resume
        with pytest.raises(Conflict, match="exists and is not empty"):
            linear_world.batch("linear", source, resume=resume)
    assert [path.name for path in out.iterdir()] == ["precious.txt"]


def test_a_file_that_is_damaged_from_the_start_is_refused(linear_world):
    path = linear_world.folder / "in.parquet"
    path.write_bytes(b"PAR1 this is no table PAR1")
    refused(linear_world, path, "in.parquet cannot be read as parquet")
    text = linear_world.folder / "in.csv"
    text.write_text("")
    refused(linear_world, text, "in.csv cannot be read as csv")


def test_a_column_that_is_there_twice_is_refused_unless_it_is_left_out(linear_world):
    twice = pa.table([pa.array(X), pa.array([1, 2, 3]), pa.array([4, 5, 6])], names=["X", "a", "a"])
    path = linear_world.folder / "in.parquet"
    pa.parquet.write_table(twice, path)
    refused(linear_world, path, '2 columns are called "a"; rename them, or choose with --keep')
    assert linear_world.batch("linear", path, keep=("none",)).rows == 3
    pa.parquet.write_table(twice.rename_columns(["X", "X", "a"]), path)
    with pytest.raises(InvalidInput, match='2 columns are called "X"'):
        linear_world.batch("linear", path, "out2")


def test_a_value_of_another_type_far_down_a_text_file_says_what_to_do(doubler):
    path = doubler.folder / "in.csv"
    path.write_text("x,n\n" + "1.0,1\n" * 800_000 + "1.0,2.5\n")
    with pytest.raises(InvalidInput, match=r"invalid value '2\.5'\. The first 4 MB say of what type .* with --keep"):
        doubler.batch("double", path, batch_rows=4096, part_rows=65_536)
    assert doubler.batch("double", path, "out2", keep=("none",)).rows == 800_001


def test_a_job_is_kept_while_its_model_loads_for_longer_than_a_lease_lasts(world, monkeypatch):
    for module in ("foretell.store.jobs", "foretell.batch.run"):
        monkeypatch.setattr(f"{module}.LEASE_S", 0.6)
    world.add_python("lazy", "import time\ntime.sleep(1.5)\ndef predict(x):\n    return {'y': x}")
    world.single("lazy")
    renewed = Mock(side_effect=world.store.jobs.renew)
    monkeypatch.setattr(world.store.jobs, "renew", renewed)
    assert world.batch("lazy", world.table("in.parquet", x=[1.0])).rows == 1
    assert renewed.call_count > 8


# What fails a row


def test_rows_that_cannot_be_used_go_to_the_errors_file_with_the_reason(linear_world):
    rows = [[1.0, 2.0], None, [3.0], [5.0, None], [7.0, 8.0]]
    report = linear_world.batch("linear", linear_world.table("in.parquet", id=list("abcde"), X=rows))
    assert linear_world.rows().column("id").to_pylist() == ["a", "d", "e"]
    assert np.isnan(linear_world.rows().column("y").to_pylist()[1])  # null among numbers is NaN, as it is online
    source = str(linear_world.folder / "in.parquet")
    assert linear_world.errors() == [
        {"id": "b", "file": source, "row": 1, "error": 'column "X": null, the model expects a list of 2'},
        {"id": "c", "file": source, "row": 2, "error": 'column "X": a list of another length than 2'},
    ]
    assert (report.rows, report.errors) == (3, 2)


def test_nan_fails_a_row_where_the_package_refuses_it(world):
    world.add_python(
        "careful", "def predict(x):\n    return {'y': x}", SIGNATURE.replace("[-1] }]", "[-1], allow_nan = false }]", 1)
    )
    world.single("careful")
    values = [1.0, float("nan"), None, float("inf"), 2.0]
    report = world.batch("careful", world.table("in.parquet", x=pa.array(values, pa.float32())))
    assert world.rows().column("y").to_pylist() == [1.0, 2.0]
    assert [error["row"] for error in world.errors()] == [1, 2, 3]
    assert {error["error"] for error in world.errors()} == {
        'column "x": NaN, infinity or null, which this model refuses'
    }
    assert report.errors == 3


def test_a_row_on_which_the_model_raises_fails_alone_among_thousands(doubler):
    values = np.arange(5000, dtype=np.float32)
    values[[17, 4001]] = -1
    report = doubler.batch("double", doubler.table("in.parquet", id=np.arange(5000), x=values))
    assert report.errors == 2
    assert [(e["row"], "minus one" in e["error"]) for e in doubler.errors()] == [(17, True), (4001, True)]
    rows = doubler.rows()
    assert rows.column("id").to_pylist() == [i for i in range(5000) if i not in (17, 4001)]
    np.testing.assert_array_equal(rows.column("y"), np.delete(values, [17, 4001]) * 2)


def test_a_row_that_kills_the_replica_fails_alone(doubler):
    report = doubler.batch("double", doubler.table("in.parquet", x=[1.0, -2.0, 3.0]))
    assert doubler.rows().column("y").to_pylist() == [2.0, 6.0]
    assert report.errors == 1
    assert "died" in doubler.errors()[0]["error"]


def test_errors_name_the_row_of_the_file_though_a_filter_left_others_out(doubler):
    source = doubler.table("in.parquet", x=[5.0, 6.0, -1.0, 7.0], day=[1, 2, 2, 2])
    doubler.batch("double", source, where="day == 2")
    assert [(error["row"], error["day"]) for error in doubler.errors()] == [(2, 2)]


# What stops a job


def test_too_many_errors_stop_the_job_and_a_higher_limit_lets_it_go_on(doubler):
    source = doubler.table("in.parquet", x=[1.0, -1.0, 2.0, -1.0])
    with pytest.raises(InvalidInput, match=r"2 rows failed, --max-errors allows 1; one of them: .*minus one"):
        doubler.batch("double", source, max_errors=1)
    assert doubler.job().state == "failed"
    with pytest.raises(InvalidInput, match="2 rows failed, --max-errors allows 1"):
        doubler.batch("double", source, max_errors=1, resume=True)
    assert doubler.job().state == "failed", "though no part is left to do"
    assert doubler.batch("double", source, max_errors=2, resume=True).errors == 2
    assert doubler.rows().column("y").to_pylist() == [2.0, 4.0]


def test_a_limit_that_was_raised_stays_with_the_job(doubler, monkeypatch):
    source = doubler.table("in.parquet", x=[1.0, -1.0, -1.0, 2.0])
    monkeypatch.setattr(OutputFolder, "write_text", Mock(side_effect=ConfigError("the disk is full")))
    with pytest.raises(InvalidInput):
        doubler.batch("double", source, max_errors=1, part_rows=2)
    with pytest.raises(ConfigError, match="the disk is full"):
        doubler.batch("double", source, max_errors=2, part_rows=2, resume=True)
    monkeypatch.undo()
    assert doubler.run_again(doubler.job()).errors == 2


def test_a_damaged_page_stops_the_job_with_the_name_of_the_file(linear_world, monkeypatch):
    monkeypatch.setattr("foretell.batch.tuning.MOST_ROWS", 1024)
    values = np.random.default_rng(0).random((4096, 2), dtype=np.float32)
    path = linear_world.folder / "in.parquet"
    form = {"row_group_size": 2048, "compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pa.parquet.write_table(pa.table({"X": list(values)}), path, **form)
    raw = bytearray(path.read_bytes())
    column = pa.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    raw[column.data_page_offset + column.total_compressed_size - 4] ^= 1  # a bit of a number: only its page's sum tells
    path.write_bytes(raw)
    with pytest.raises(InvalidInput, match=r"in\.parquet cannot be read as parquet"):
        linear_world.batch("linear", path)
    assert linear_world.job().state == "failed"
    assert "in.parquet" in linear_world.job().reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(linear_world):
    path = linear_world.table("in.parquet", X=X)
    path.chmod(0)
    refused(linear_world, path, "cannot be read")


def test_a_file_that_vanishes_is_named(linear_world):
    linear_world.table("in/a.parquet", X=X)
    spec = linear_world.spec("linear", linear_world.folder / "in")
    source = Source(spec.reading.paths)
    shutil.rmtree(linear_world.folder / "in")
    with pytest.raises(InvalidInput, match=r"a\.parquet cannot be read"):
        assert source.schema


def test_a_file_that_is_a_row_and_vanishes_is_named_and_no_empty_row(world):
    for name in ("a.txt", "b.txt"):
        (world.folder / name).write_text(name)
    source = Source([str(world.folder / "*.txt")])
    (world.folder / "b.txt").unlink()
    with pytest.raises(InvalidInput, match=r"cannot be read as files: .*b\.txt"), open_input(source.files[0]) as reader:
        list(reader.read(0, ("path", "content")))


def test_a_file_that_changes_while_the_job_runs_is_noticed(linear_world):
    path = linear_world.table("in [1].parquet", X=X)
    source = Source([str(path)])
    layout = Layout(linear_world.spec("linear", path), source.schema, ["X"], pa.schema([]), set())
    assert next(source.parts(layout, 2, [3], {})).table.num_rows == 2
    linear_world.table("in [1].parquet", X=X + X)
    with pytest.raises(Conflict, match="has changed while the job ran"):
        next(source.parts(layout, 2, [3], {}))
    path.unlink()
    with pytest.raises(InvalidInput, match="cannot be read"):
        next(source.parts(layout, 2, [3], {}))


def test_a_later_file_with_other_columns_is_named_with_the_first(linear_world):
    linear_world.table("in/a.parquet", id=[1], X=[[1.0, 2.0]])
    linear_world.table("in/b.parquet", id=[2], Y=[[1.0, 2.0]])
    with pytest.raises(InvalidInput, match=r"b.parquet differs from .*a.parquet: .*X"):
        linear_world.batch("linear", linear_world.folder / "in")
    linear_world.table("in/b.parquet", id=["two"], X=[[1.0, 2.0]])
    with pytest.raises(InvalidInput, match='column "id" holds string, in the first file int64'):
        linear_world.batch("linear", linear_world.folder / "in", "out2")


def test_a_later_file_with_a_narrower_number_is_read_as_the_first(linear_world):
    linear_world.table("in/a.parquet", id=[1], X=[[1.0, 2.0]])
    linear_world.table("in/b.parquet", id=pa.array([2], pa.int16()), X=pa.array([[1, 2]], pa.list_(pa.int8())))
    linear_world.batch("linear", linear_world.folder / "in")
    assert linear_world.rows().to_pydict()["id"] == [1, 2]
    assert linear_world.rows().to_pydict()["y"] == [21.0, 21.0]


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (pa.array(["a"]), pa.array(["b"], pa.large_string())),
        (pa.array(["a"]), pa.array(["b"]).dictionary_encode()),
        (pa.array(["a"]).dictionary_encode(), pa.array(["b"])),
        (pa.array([0], pa.timestamp("us")), pa.array([1_000_000_000], pa.timestamp("ns"))),
    ],
)
def test_texts_and_times_may_be_laid_out_in_another_way_in_a_later_file(linear_world, first, later):
    linear_world.table("in/a.parquet", note=first, X=X[:1])
    linear_world.table("in/b.parquet", note=later, X=X[:1])
    linear_world.batch("linear", linear_world.folder / "in")
    assert linear_world.rows().column("note").to_pylist() == first.to_pylist() + later.to_pylist()


def test_a_later_file_whose_values_do_not_fit_the_first_is_named_with_the_column(linear_world):
    linear_world.table("in/a.parquet", id=[1], X=[[1.0, 2.0]])
    linear_world.table("in/b.parquet", id=[2.5], X=[[1.0, 2.0]])
    with pytest.raises(
        InvalidInput, match=r'b\.parquet: column "id" does not fit int64, its type in the first file.*2\.5'
    ):
        linear_world.batch("linear", linear_world.folder / "in")
    assert 'column "id"' in linear_world.job().reason


def test_a_column_that_is_null_in_a_whole_later_file_is_read_as_in_the_first(linear_world):
    (linear_world.folder / "in").mkdir()
    (linear_world.folder / "in/a.jsonl").write_text('{"id": "a", "tags": ["x"], "t": 1.0, "X": [1.0, 2.0]}')
    (linear_world.folder / "in/b.jsonl").write_text('{"id": null, "tags": null, "t": null, "X": [1.0, 2.0]}')
    report = linear_world.batch("linear", linear_world.folder / "in", label="t=y", keep=("id", "tags"))
    rows = linear_world.rows().to_pydict()
    assert (rows["id"], rows["tags"], rows["y"]) == (["a", None], [["x"], None], [21.0, 21.0])
    assert report.quality.rows == 1


def test_a_column_that_is_null_in_the_whole_first_file_has_the_type_of_the_next_that_knows_one(linear_world):
    folder = linear_world.folder / "in"
    folder.mkdir()
    for name, (note, tags, day, truth, x) in {
        "a": ("null", "null", "null", "null", "null"),
        "b": ('"two"', "[]", "2", "1.0", "[1.0, 2.0]"),
        "c": ('"three"', '["x"]', "3", "2.0", "[3.0, 4.0]"),
    }.items():
        line = f'{{"note": {note}, "tags": {tags}, "day": {day}, "t": {truth}, "X": {x}}}'
        (folder / f"{name}.jsonl").write_text(line)
    report = linear_world.batch("linear", folder, label="t=y", keep=("note", "tags"), where="day is None or day > 2")
    rows = linear_world.rows().to_pydict()
    assert (rows["note"], rows["tags"], rows["y"]) == (["three"], [["x"]], [43.0])
    assert [error["error"] for error in linear_world.errors()] == ['column "X": null, the model expects a list of 2']
    assert (report.filtered, report.quality.rows) == (1, 1)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"where": "day > 3"}, r'b\.parquet differs from .*a\.parquet: --where "day > 3" does not fit the columns'),
        ({"label": "day=y"}, r'b\.parquet differs from .*a\.parquet: --label: column "day" holds string'),
    ],
)
def test_a_later_file_is_checked_against_the_filter_and_the_label_before_anything_runs(linear_world, asked, says):
    linear_world.table("in/a.parquet", day=[4], X=[[1.0, 2.0]])
    linear_world.table("in/b.parquet", day=["5"], X=[[1.0, 2.0]])
    with pytest.raises(InvalidInput, match=says):
        linear_world.batch("linear", linear_world.folder / "in", keep=("none",), **asked)
    assert linear_world.store.jobs.parts(linear_world.job().id) == []


def test_an_input_without_rows_is_a_finished_job_without_rows(linear_world):
    source = linear_world.table("in.parquet", X=pa.array([], pa.list_(pa.float32())))
    assert linear_world.batch("linear", source).rows == 0
    assert linear_world.job().state == "completed"
    source = linear_world.table("two.parquet", X=X)
    report = linear_world.batch("linear", source, "none", where="1 > 2")
    assert (report.filtered, report.parts) == (3, 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(("form", "name"), [("parquet", "part-00000-000002.parquet"), ("csv", "part-00000-000001.csv")])
def test_a_full_disk_stops_the_job_and_loses_nothing(linear_world, big, form, name):
    """/dev/full refuses every write, as a full disk does: here, that of one part."""
    out = linear_world.folder / "out"
    out.mkdir()
    more = {"format": form, "batch_rows": 1000, "part_rows": 1000}
    spec = linear_world.spec("linear", big, **more)
    job = linear_world.store.jobs.create(str(out), encode(spec), encode(Plan(Source(spec.reading.paths).seen)), 0.0)
    (out / temporary_name(name, 1)).symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"No space left on device.*What was committed stays: free some space"):
        linear_world.run_again(job)
    assert linear_world.job().state == "failed"
    report = linear_world.batch("linear", big, resume=True, **more)
    assert (report.rows, report.parts) == (5000, 5)
    ids = pa.dataset.dataset(str(out), format=form).to_table().column("id")
    assert sorted(ids.to_pylist()) == list(range(5000))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_disk_that_is_full_at_the_report_is_told(linear_world):
    out = linear_world.folder / "out"
    out.mkdir()
    (out / "._report.json.tmp").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match="No space left on device"):
        OutputFolder(out).write_text("_report.json", "{}" * 10_000)


# What is refused when a job is resumed


def interrupted(world, source, monkeypatch, **more):
    """A job that failed half-way: some of its parts are recorded."""
    original = world.store.jobs.record

    def failing(*arguments):
        original(*arguments)
        raise ForetellError("stopped by the test")

    monkeypatch.setattr("foretell.batch.tuning.MOST_ROWS", 1024)
    monkeypatch.setattr(world.store.jobs, "record", failing)
    with pytest.raises(ForetellError):
        world.batch("linear", source, **more)
    monkeypatch.undo()
    assert world.store.jobs.parts(world.job().id)
    return world.job()


@pytest.fixture
def big(linear_world):
    values = np.arange(10_000, dtype=np.float32).reshape(-1, 2)
    return linear_world.table("in/a.parquet", id=np.arange(5000), X=list(values))


def test_an_input_that_changed_between_runs_is_refused(linear_world, big, monkeypatch):
    job = interrupted(linear_world, big.parent, monkeypatch)
    raw, stat = big.read_bytes(), big.stat()
    linear_world.table("in/b.parquet", id=[1], X=[[1.0, 2.0]])
    with pytest.raises(Conflict, match=f"b.parquet is new since job {job.id} began"):
        linear_world.batch("linear", big.parent, resume=True)
    (linear_world.folder / "in/b.parquet").unlink()
    big.write_bytes(raw)
    with pytest.raises(Conflict, match=r"a\.parquet has changed since"):
        linear_world.batch("linear", big.parent, resume=True)
    os.utime(big, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    linear_world.batch("linear", big.parent, resume=True)
    assert linear_world.rows().column("id").to_pylist() == list(range(5000))


def test_a_job_that_asked_for_something_else_is_not_resumed(linear_world, big, monkeypatch):
    interrupted(linear_world, big, monkeypatch)
    with pytest.raises(Conflict, match=r"its reading was .*Resume it with `foretell jobs resume"):
        linear_world.batch("linear", big, resume=True, where="id > 3")


def test_a_committed_file_that_is_gone_is_noticed(linear_world, big, monkeypatch):
    job = interrupted(linear_world, big, monkeypatch)
    name = linear_world.store.jobs.parts(job.id)[0].names[0]
    (linear_world.folder / "out" / name).unlink()
    with pytest.raises(Conflict, match="was committed and is gone"):
        linear_world.batch("linear", big, resume=True)


def test_leavings_of_a_dead_run_are_removed(linear_world, big, monkeypatch):
    interrupted(linear_world, big, monkeypatch)
    out = linear_world.folder / "out"
    for name in ("part-00000-000099.parquet", ".part-00000-000003.parquet.1.tmp"):
        (out / name).write_bytes(b"half")
    linear_world.batch("linear", big, resume=True)
    assert linear_world.rows().column("id").to_pylist() == list(range(5000))


def test_what_a_dead_worker_left_is_gone_at_the_end(linear_world, monkeypatch):
    """It had a row fail, or died in the middle of a file; another one did the part, and no row failed."""
    original = Work.do

    async def after_another(self, *arguments):
        (linear_world.folder / "out/_errors").mkdir()
        for name in ("_errors/part-00000-000000.jsonl", ".part-00000-000000.parquet.1.tmp"):
            (linear_world.folder / "out" / name).write_text("{}")
        return await original(self, *arguments, again=1)

    monkeypatch.setattr(Work, "do", after_another)
    assert linear_world.batch("linear", linear_world.table("in.parquet", X=X)).errors == 0
    left = [path.name for path in (linear_world.folder / "out").rglob("*") if path.is_file()]
    assert sorted(left) == ["_report.html", "_report.json", "part-00000-000000.parquet"]


def test_a_package_that_is_missing_or_another_is_refused(linear_world, big, monkeypatch):
    job = interrupted(linear_world, big, monkeypatch)
    package = linear_world.folder / "home/packages/linear/1"
    package.rename(package.with_name("elsewhere"))
    linear_world.store._verified.clear()
    with pytest.raises(NotFound, match="the files of linear@1 are gone"):
        linear_world.batch("linear", big, resume=True)
    package.with_name("elsewhere").rename(package)
    with pytest.raises(PackageError, match="another package than the one that the job began with"):
        linear_world.run_again(job, digest="0" * 64)


def test_a_second_process_is_refused_while_the_first_runs_the_job(linear_world, big, monkeypatch):
    job = interrupted(linear_world, big, monkeypatch)
    owner = this_process()
    linear_world.store.jobs.claim(job.id, owner, time.time(), gone)
    with pytest.raises(Conflict, match=r"is run by another process .*Wait for it, or end it"):
        linear_world.batch("linear", big, resume=True)
    assert linear_world.job().owner == owner, "the refused one changed nothing"


def test_a_job_whose_process_is_dead_can_be_resumed_at_once(linear_world, big, monkeypatch):
    job = interrupted(linear_world, big, monkeypatch)
    tell = "from foretell.batch.owner import this_process; print(this_process())"
    dead = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, check=True).stdout.strip()
    linear_world.store.jobs.claim(job.id, f"another-{dead}", time.time(), gone)
    with pytest.raises(Conflict, match="is run by another process"):  # nobody here can know whether that one lives
        linear_world.batch("linear", big, resume=True)
    linear_world.store.jobs.claim(job.id, dead, time.time(), lambda owner: True)
    assert linear_world.batch("linear", big, resume=True).rows == 5000


def test_a_cancelled_job_stops_its_process(linear_world, monkeypatch):
    """The process notices when it next renews its lease or records a part."""
    linear_world.add_python("slow", "import time\ndef predict(x):\n    time.sleep(0.03)\n    return {'y': x}")
    source = linear_world.table("in.parquet", x=np.zeros(20_000, np.float32))
    running = linear_world.cli("batch", "slow", source, linear_world.folder / "out", *SMALL)
    until(lambda: linear_world.store.jobs.all() and linear_world.store.jobs.parts(linear_world.job().id))
    assert linear_world.cli("jobs", "cancel", linear_world.job().id[:8]).wait() == 0
    _, said = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "was cancelled" in said
    assert linear_world.job().state == "cancelled"


def test_ctrl_c_leaves_a_job_that_can_be_resumed(linear_world):
    linear_world.add_python("slow", "import time\ndef predict(x):\n    time.sleep(0.03)\n    return {'y': x}")
    source = linear_world.table("in.parquet", id=np.arange(3000), x=np.zeros(3000, np.float32))
    running = linear_world.cli("batch", "slow", source, linear_world.folder / "out", *SMALL)
    until(lambda: linear_world.store.jobs.all() and linear_world.store.jobs.parts(linear_world.job().id))
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Go on: foretell jobs resume" in said
    assert linear_world.job().state == "queued"
    again = linear_world.cli("jobs", "resume", linear_world.job().id, "--trust-code", "--json")
    _, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert linear_world.rows().column("id").to_pylist() == list(range(3000))


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
