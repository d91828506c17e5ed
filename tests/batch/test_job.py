"""Whole jobs on real replicas: what comes in, what goes out, what is kept, and what the report says."""

import csv
import json
import os
import subprocess
import sys
import time
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from PIL import Image

from foretell.app.config import ModelSettings
from foretell.batch.output import write_table
from foretell.batch.scoring import RowScorer
from foretell.batch.work import Work
from foretell.core.errors import Conflict, InvalidInput
from foretell.store.job import JobPart

ROWS = {"id": [7, 8, 9], "X": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}
ANSWERS = [21.0, 43.0, 65.0]


def test_predictions_stand_beside_the_kept_columns_with_vectors_as_lists(linear_world):
    report = linear_world.batch("linear", linear_world.table("in.parquet", **ROWS))
    rows = linear_world.rows()
    assert rows.column_names == ["id", "y", "pair"]
    assert rows.schema.field("pair").type == pa.list_(pa.float32())
    assert rows.to_pydict() == {"id": [7, 8, 9], "y": ANSWERS, "pair": [[2, 4], [6, 8], [10, 12]]}
    assert (report.read, report.rows, report.errors, report.files) == (3, 3, 0, 1)
    assert report.dollars > 0
    assert linear_world.job().state == "completed"


FORMS = {
    "in.parquet": lambda table, path: pa.parquet.write_table(table, path),
    "in.arrow": lambda table, path: pa.feather.write_feather(table, path, compression="uncompressed"),
    "in.jsonl": lambda table, path: path.write_text("\n".join(json.dumps(row) for row in table.to_pylist())),
    "in.csv": lambda table, path: pa.csv.write_csv(table, path),
    "in.tsv": lambda table, path: pa.csv.write_csv(table, path, pa.csv.WriteOptions(delimiter="\t")),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_table_gives_the_same_rows(linear_world, name):
    wide = {"id": [7, 8, 9], "a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}
    FORMS[name](pa.table(wide), linear_world.folder / name)
    linear_world.batch("linear", linear_world.folder / name, map=["a,b=X"])
    assert linear_world.rows().select(["id", "y"]).to_pydict() == {"id": [7, 8, 9], "y": ANSWERS}


def test_the_streaming_form_of_arrow_is_read_too(linear_world):
    path = linear_world.folder / "in.arrows"
    with pa.ipc.new_stream(path, pa.table(ROWS).schema) as writer:
        writer.write_table(pa.table(ROWS), max_chunksize=2)
    linear_world.batch("linear", path)
    assert linear_world.rows().column("y").to_pylist() == ANSWERS


def test_csv_and_json_lines_come_out_with_lists_as_json(linear_world):
    source = linear_world.table("in.parquet", **ROWS, word=['a"b', "c,d", None])
    linear_world.batch("linear", source, "csv", format="csv")
    linear_world.batch("linear", source, "jsonl", format="jsonl")
    table = pa.csv.read_csv(linear_world.folder / "csv/part-00000-000000.csv")
    assert [json.loads(cell) for cell in table.column("pair").to_pylist()] == [[2, 4], [6, 8], [10, 12]]
    lines = (linear_world.folder / "jsonl/part-00000-000000.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"id": 7, "word": 'a"b', "y": 21.0, "pair": [2, 4]}


NAN = float("nan")
CELLS = {
    "numbers": (
        pa.list_(pa.float32()),
        [[0.1, None, 2.0], None, [], [NAN, -3e38]],
        [[0.1, None, 2], "", [], [None, -3e38]],
    ),
    "halves": (pa.list_(pa.float16()), [[0.5, None]], [[0.5, None]]),
    "flags": (pa.large_list(pa.bool_()), [[True, None, False]], [[True, None, False]]),
    "texts": (
        pa.list_(pa.string()),
        [['a"b\\', "c\nd\x01", None, "ü,"], None],
        [['a"b\\', "c\nd\x01", None, "ü,"], ""],
    ),
    "nested": (pa.list_(pa.list_(pa.int8(), 2)), [[[1, None], None], None, []], [[[1, None], None], "", []]),
    "days": (pa.list_(pa.date32()), [[date(2026, 1, 2), None]], [["2026-01-02", None]]),
    "records": (pa.struct([("a", pa.int8())]), [{"a": 1}, None], [{"a": 1}, ""]),
    "lists_of_records": (pa.list_(pa.struct([("a", pa.string())])), [[{"a": "x"}, None]], [[{"a": "x"}, None]]),
}


@pytest.mark.parametrize("name", CELLS)
def test_csv_holds_every_list_as_json_and_a_null_as_an_empty_cell(tmp_path, name):
    kind, values, said = CELLS[name]
    table = pa.table({"id": range(len(values)), "cell": pa.array(values, kind)})
    write_table(table.slice(0, 1), "csv", tmp_path / "first.csv")
    write_table(pa.concat_tables([table.slice(0, 1), table.slice(1)]), "csv", tmp_path / "in.csv")
    for path, expected in (("first.csv", said[:1]), ("in.csv", said)):
        with (tmp_path / path).open(newline="") as file:
            cells = [row["cell"] for row in csv.DictReader(file)]
        assert [cell and json.loads(cell) for cell in cells] == expected


def test_bytes_are_base64_in_csv_and_json_lines(linear_world):
    source = linear_world.table("in.parquet", **ROWS, raw=[b"\xff\x00", None, b""])
    for form in ("csv", "jsonl"):
        linear_world.batch("linear", source, form, format=form, keep=("raw",))
    with (linear_world.folder / "csv/part-00000-000000.csv").open(newline="") as file:
        assert [row["raw"] for row in csv.DictReader(file)] == ["/wA=", "", ""]
    lines = (linear_world.folder / "jsonl/part-00000-000000.jsonl").read_text().splitlines()
    assert [json.loads(line)["raw"] for line in lines] == ["/wA=", None, ""]


def test_a_filter_leaves_rows_out_and_keep_names_the_columns_that_go_along(linear_world):
    source = linear_world.table("in.parquet", **ROWS, more=["a", "b", "c"])
    report = linear_world.batch("linear", source, where="id >= 8 and more != 'c'", keep=("more",))
    assert linear_world.rows().to_pydict() == {"more": ["b"], "y": [43.0], "pair": [[6, 8]]}
    assert (report.read, report.rows, report.filtered) == (3, 1, 2)
    linear_world.batch("linear", source, "all", keep=("all",))
    assert linear_world.rows("all").column_names == ["id", "X", "more", "y", "pair"]
    linear_world.batch("linear", source, "none", keep=("none",))
    assert linear_world.rows("none").column_names == ["y", "pair"]


def test_a_kept_column_with_the_name_of_an_output_stays_beside_the_prediction(linear_world):
    linear_world.batch("linear", linear_world.table("in.parquet", X=ROWS["X"], y=[1.0, 2.0, 3.0]))
    assert linear_world.rows().select(["y", "predicted_y"]).to_pydict() == {
        "y": [1.0, 2.0, 3.0],
        "predicted_y": ANSWERS,
    }


def test_partitions_of_a_folder_are_kept_and_can_be_filtered_and_mapped(linear_world):
    for month in (1, 2, 10):
        linear_world.table(f"flights/month={month}/f.parquet", a=[float(month)], id=[month])
    (linear_world.folder / "flights/_SUCCESS").write_text("")
    linear_world.batch("linear", linear_world.folder / "flights", map=["a,month=X"], where="month > 1")
    rows = linear_world.rows().sort_by("month")
    assert rows.select(["id", "month", "y"]).to_pydict() == {"id": [2, 10], "month": [2, 10], "y": [22.0, 110.0]}
    assert sorted(p.name for p in (linear_world.folder / "out").iterdir() if p.is_dir()) == ["month=10", "month=2"]


def test_partitions_are_numbers_only_where_all_of_them_are(linear_world):
    for month in ("09", "10"):
        linear_world.table(f"flights/month={month}/f.parquet", a=[1.0], b=[1.0], id=[month])
    linear_world.batch("linear", linear_world.folder / "flights", map=["a,b=X"], where="month >= '10'")
    assert linear_world.rows().column("id").to_pylist() == ["10"]
    assert (linear_world.folder / "out/month=10").is_dir()
    with pytest.raises(InvalidInput, match='--where "month > 9" does not fit the columns'):
        linear_world.batch("linear", linear_world.folder / "flights", "more", map=["a,b=X"], where="month > 9")


def test_a_glob_and_several_inputs_are_one_input(linear_world):
    for name in ("a1", "a2", "b"):
        linear_world.table(f"{name}.parquet", id=[name], X=[[1.0, 2.0]])
    folder = linear_world.folder
    linear_world.batch("linear", [folder / "a*.parquet", folder / "b.parquet"])
    assert linear_world.rows().column("id").to_pylist() == ["a1", "a2", "b"]


def test_a_url_of_any_file_system_is_an_input(linear_world):
    import fsspec

    pa.parquet.write_table(pa.table(ROWS), (path := linear_world.folder / "in.parquet"))
    fsspec.filesystem("memory").pipe_file("/bucket/in.parquet", path.read_bytes())
    linear_world.batch("linear", "memory://bucket/in.parquet")
    assert linear_world.rows().column("y").to_pylist() == ANSWERS


def test_files_of_texts_and_images_are_rows_by_themselves(world):
    size = "import io\nimport numpy as np\nfrom PIL import Image\n"
    signature = """[signature]
inputs = [{ name = "image", datatype = "BYTES", shape = [-1] }]
outputs = [{ name = "width", datatype = "INT64", shape = [-1] }]
"""
    code = (
        f"{size}def predict(image):\n    return {{'width': np.array([Image.open(io.BytesIO(i)).width for i in image])}}"
    )
    world.add_python("width", size + code, signature)
    world.single("width")
    folder = world.folder / "photos"
    folder.mkdir()
    for width in (3, 5, 4):
        Image.new("RGB", (width, 2)).save(folder / f"{width}.png")
    (folder / "broken.png").write_bytes(b"no image")
    report = world.batch("width", folder)
    rows = world.rows().to_pydict()
    assert [path.rpartition("/")[2] for path in rows["path"]] == ["3.png", "4.png", "5.png"]
    assert rows["width"] == [3, 4, 5]
    assert report.errors == 1
    assert world.errors()[0]["path"].endswith("broken.png")
    assert "cannot identify image" in world.errors()[0]["error"]


SIZE_OF = """[signature]
inputs = [{ name = "file", datatype = "BYTES", shape = [-1] }]
outputs = [{ name = "size", datatype = "INT64", shape = [-1] }]
"""


@pytest.fixture
def sizer(world):
    """ "size" in the store: how many bytes a file has."""
    world.add_python("size", "def predict(file):\n    return {'size': np.array([len(one) for one in file])}", SIZE_OF)
    world.single("size")
    return world


def test_names_that_look_like_patterns_are_names(sizer):
    for name in ("photo[1].txt", "photo1.txt", "what?.txt", "a*.txt"):
        (path := sizer.folder / "notes" / name).parent.mkdir(exist_ok=True)
        path.write_text(name)
    sizer.batch("size", sizer.folder / "notes")
    rows = sizer.rows().to_pylist()
    assert {row["path"].rpartition("/")[2]: row["size"] for row in rows} == {
        "photo[1].txt": 12,
        "photo1.txt": 10,
        "what?.txt": 9,
        "a*.txt": 6,
    }


def test_a_table_may_have_a_name_that_looks_like_a_pattern(linear_world):
    source = linear_world.table("in [1].parquet", **ROWS)
    linear_world.table("in 1.parquet", X=[[0.0, 0.0]])
    linear_world.batch("linear", source)
    assert linear_world.rows().column("y").to_pylist() == ANSWERS
    linear_world.batch("linear", linear_world.folder / "in [[]*.parquet", "glob")
    assert linear_world.rows("glob").column("y").to_pylist() == ANSWERS


def test_rows_of_different_lengths_come_back_in_their_order(world):
    signature = """[signature]
inputs = [{ name = "x", datatype = "INT64", shape = [-1, -1] }]
outputs = [{ name = "twice", datatype = "INT64", shape = [-1, -1] }, { name = "n", datatype = "INT64", shape = [-1] }]
"""
    world.add_python(
        "ragged", "def predict(x):\n    return {'twice': x * 2, 'n': np.full(len(x), x.shape[1])}", signature
    )
    world.single("ragged")
    rows = [[1, 2], [3], [4, 5, 6], [7], [8, 9]]
    world.batch("ragged", world.table("in.parquet", x=rows))
    assert world.rows().to_pydict() == {"twice": [[v * 2 for v in row] for row in rows], "n": [2, 1, 3, 1, 2]}


def test_the_report_is_there_as_json_and_as_a_page_and_in_the_store(linear_world):
    source = linear_world.table("in.parquet", X=ROWS["X"], truth=[21.0, 40.0, 65.0])
    linear_world.batch("linear", source, label="truth=y")
    document = json.loads((linear_world.folder / "out/_report.json").read_text())
    assert document == json.loads(linear_world.job().report)
    assert document["rows"] == 3
    assert document["quality"]["estimates"][0]["name"] == "mean absolute error"
    assert document["quality"]["estimates"][0]["value"] == pytest.approx(1.0)
    page = (linear_world.folder / "out/_report.html").read_text()
    assert "foretell batch linear@1" in page
    assert "mean absolute error" in page


def test_parts_and_requests_have_the_same_rows_however_often_the_job_is_resumed(linear_world, monkeypatch):
    values = np.arange(40_000, dtype=np.float32).reshape(-1, 2)
    source = linear_world.table("in.parquet", id=np.arange(20_000), X=list(values))
    original = Work.write
    calls = []

    def dying(self, layout, part, *more):
        calls.append(part.key)
        if len(calls) == 2:
            raise RuntimeError("the process died here")
        return original(self, layout, part, *more)

    monkeypatch.setattr("foretell.batch.tuning.MOST_ROWS", 4096)
    monkeypatch.setattr(Work, "write", dying)
    with pytest.raises(RuntimeError):
        linear_world.batch("linear", source)
    plan = linear_world.job().plan
    assert linear_world.job().state == "failed"
    assert "the process died here" in linear_world.job().reason
    report = linear_world.batch("linear", source, resume=True)
    assert linear_world.job().plan == plan
    assert report.attempts == 2
    assert report.parts == 5
    assert linear_world.rows().column("id").to_pylist() == list(range(20_000))


def test_resume_of_a_finished_job_or_of_none(linear_world):
    source = linear_world.table("in.parquet", **ROWS)
    assert linear_world.batch("linear", source, resume=True).rows == 3
    with pytest.raises(Conflict, match="is completed"):
        linear_world.batch("linear", source, resume=True)


def test_a_job_keeps_its_version_though_a_newer_one_is_there(doubler):
    source = doubler.table("in.parquet", x=[1.0, -1.0])
    with pytest.raises(InvalidInput, match="--max-errors allows 0"):
        doubler.batch("double", source, max_errors=0)
    doubler.add_python("triple", "def predict(x):\n    return {'y': x * 3}")
    doubler.store.add("double", doubler.folder / "python/triple")
    with pytest.raises(Conflict, match=r"its model was double@1, not double@2\. Resume it with"):
        doubler.batch("double", source, resume=True)
    assert doubler.run_again(doubler.job(), max_errors=None).model == "double@1"
    assert doubler.rows().column("y").to_pylist() == [2.0]
    assert doubler.batch("double", source, "other").model == "double@2"


def test_the_models_settings_of_the_operator_are_used(doubler):
    doubler.config = type(doubler.config)(
        server=doubler.config.server, models={"double": ModelSettings(replicas={"count": 2, "threads": 1})}
    )
    assert doubler.batch("double", doubler.table("in.parquet", x=[1.0, 2.0])).rows == 2


def test_the_clock_of_a_rate_runs_while_sizes_are_tried(doubler, monkeypatch):
    told, tried = [], []
    original = RowScorer.sizes

    async def noting(self, *arguments):
        tried.append(time.monotonic())
        return await original(self, *arguments)

    monkeypatch.setattr(RowScorer, "sizes", noting)
    doubler.tell = lambda progress: told.append(progress.began)
    doubler.batch("double", doubler.table("in.parquet", x=[1.0, 2.0]))
    assert told[0] < tried[0]


def test_records_of_parts_say_what_became_of_each_row(doubler):
    doubler.batch("double", doubler.table("in.parquet", x=[1.0, -1.0, 2.0, 3.0]), where="x < 3")
    (part,) = doubler.store.jobs.parts(doubler.job().id)
    assert isinstance(part, JobPart)
    assert (part.read, part.rows, part.errors) == (4, 2, 1)
    assert part.names == ("part-00000-000000.parquet", "_errors/part-00000-000000.jsonl")


def test_a_job_does_not_import_pandas(linear_world):
    """pyarrow imports it for many calls where it is installed: 1.5 seconds and 58 MB."""
    source = linear_world.table("in.parquet", id=[1, 2, 3], X=[[1.0, 2.0], None, [3.0, 4.0]], t=[1.0, 2.0, 3.0])
    looked = "import sys\nfrom foretell.cli.main import main\ntry:\n    main()\nfinally:\n"
    code = f"{looked}    assert 'pandas' not in sys.modules, 'it was imported'"
    command = [sys.executable, "-c", code, "batch", "linear", str(source), str(linear_world.folder / "out")]
    environment = {**os.environ, "FORETELL_HOME": str(linear_world.folder / "home")}
    run = subprocess.run([*command, "--label", "t=y"], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert linear_world.rows().num_rows == 2
