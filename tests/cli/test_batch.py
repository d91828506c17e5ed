"""`foretell batch` and `foretell jobs` by their own words: what they print for people and scripts, what they refuse."""

import json
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet
import pytest

from foretell.app.batch import submit
from foretell.batch.owner import gone, this_process
from foretell.batch.source import Source
from foretell.batch.spec import JobSpec, Reading, Writing
from foretell.core.reference import parse_reference
from foretell.store.store import Store
from tests.cli.conftest import scale_model


@pytest.fixture
def rows(tmp_path):
    pa.parquet.write_table(pa.table({"id": [1, 2], "x": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


@pytest.fixture
def done(cli, scale, rows, tmp_path):
    """A finished job; gives its report."""
    ran = cli("batch", "scale", rows, tmp_path / "out", "--replicas", 1, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_a_job_prints_its_report_for_scripts(done):
    assert (done["model"], done["rows"], done["errors"], done["filtered"]) == ("scale@1", 2, 0, 0)
    assert done["rows_per_s"] > 0


def test_a_finished_job_is_listed_explained_and_not_run_again(cli, done, rows, tmp_path):
    (listed,) = json.loads(cli("jobs", "--json").out)
    assert (listed["id"], listed["state"], listed["rows"]) == (done["job"], "completed", 2)
    assert done["job"] in cli("jobs").out
    shown = json.loads(cli("jobs", "show", done["job"][:6], "--json").out)
    assert shown["report"] == done
    assert shown["spec"]["reading"]["paths"] == [str(rows)]
    assert "2 in the output, of 2 read" in cli("jobs", "show", done["job"]).out
    again = cli("batch", "scale", rows, tmp_path / "out", "--resume", "--json")
    assert json.loads(again.out) == done, "with --resume a finished job only tells its report"


def test_a_job_whose_process_is_gone_is_stopped_and_says_how_to_go_on(cli, scale, rows, tmp_path, home):
    with Store.open(home) as store:
        info = store.resolve(parse_reference("scale"))
        spec = JobSpec(str(info), info.digest, Reading((str(rows),)), Writing(str(tmp_path / "out")))
        job = submit(store, spec, Source(spec.reading.paths))
        store.jobs.claim(job.id, this_process(), time.time(), gone)
        assert json.loads(cli("jobs", "--json").out)[0]["state"] == "running"
        assert "go on" not in cli("jobs", "show", job.id).out
        store.jobs.claim(job.id, dead_process(), time.time(), lambda owner: True)
    assert json.loads(cli("jobs", "--json").out)[0]["state"] == "stopped"
    assert f"foretell jobs resume {job.id}" in cli("jobs", "show", job.id).out
    assert cli("jobs", "resume", job.id).code == 0
    assert json.loads(cli("jobs", "--json").out)[0]["state"] == "completed"


def dead_process() -> str:
    """The name of a process of this machine that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    sight, _, began, token = this_process().rsplit(":", 3)
    return f"{sight}:{ended.pid}:{began}:{token}"


def test_a_comma_in_the_name_of_a_file_is_part_of_it(cli, scale, rows, tmp_path):
    (named := tmp_path / "a, b.parquet").write_bytes(rows.read_bytes())
    assert json.loads(cli("batch", "scale", named, tmp_path / "out", "--replicas", 1, "--json").out)["rows"] == 2
    both = cli("batch", "scale", f"{rows},{named.parent}/a*.parquet", tmp_path / "two", "--replicas", 1, "--json")
    assert json.loads(both.out)["rows"] == 4


def test_what_is_over_can_be_neither_resumed_nor_cancelled(cli, done):
    for verb in ("resume", "cancel"):
        ran = cli("jobs", verb, done["job"])
        assert ran.code == 1
        assert "is completed: it cannot become" in ran.err
        assert ("start a new job with another output folder" in ran.err) == (verb == "resume")
    assert 'no job "nothing"' in cli("jobs", "show", "nothing").err


def test_a_file_is_no_model_of_a_job_unless_the_store_has_one_of_that_name(cli, scale, rows, tmp_path, monkeypatch):
    ran = cli("batch", scale_model(tmp_path / "m.onnx"), rows, tmp_path / "out")
    assert ran.code == 1
    assert "a job can be resumed only with one: foretell add NAME" in ran.err
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scale").mkdir()
    assert cli("batch", "scale", rows, tmp_path / "out", "--replicas", 1).code == 0


def test_what_does_not_fit_is_one_line(cli, scale, rows, tmp_path):
    ran = cli("batch", "scale", rows, tmp_path / "out", "--map", "id=x")
    assert ran.code == 1
    assert ran.err.strip().splitlines()[-1].startswith('error: column "id" for input x FP32[?, 3] holds single values')
    assert json.loads(cli("jobs", "--json").out) == []
