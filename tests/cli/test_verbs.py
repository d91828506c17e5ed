"""Every verb by its own words: what it does, what it prints for people and for scripts, what it refuses."""

import json
import pickle
import sys
from io import StringIO

import pytest
from sklearn.linear_model import LogisticRegression

from tests.cli.conftest import scale_model


def test_add_registers_version_1_and_says_how_to_serve_it(cli, tmp_path):
    ran = cli("add", "scale", scale_model(tmp_path / "m.onnx"))
    assert ran.code == 0
    assert "added scale@1 (onnx" in ran.out
    assert "x FP32[?, 3]" in ran.out
    assert "foretell serve scale" in ran.out


def test_adding_the_same_contents_again_adds_nothing(cli, scale):
    ran = cli("add", "scale", scale, "--description", "Doubles", "--json")
    assert json.loads(ran.out)["unchanged"] is True
    assert json.loads(ran.out)["version"] == 1


def test_add_takes_a_sample_and_keys_of_model_toml(cli, tmp_path):
    (tmp_path / "sample.json").write_text('{"x": [[1, 2, 3]]}')
    (tmp_path / "extra.toml").write_text("[batching]\nmax_batch_size = 7\n")
    model = scale_model(tmp_path / "m.onnx")
    ran = cli("add", "m", model, "--sample", tmp_path / "sample.json", "--config", tmp_path / "extra.toml")
    assert ran.code == 0, ran.err
    manifest = json.loads(cli("show", "m", "--json").out)["manifest"]
    assert manifest["batching"] == {"max_batch_size": 7}
    assert cli("check", "m").out.count("[[2.0, 4.0, 6.0]]") == 1


def test_add_points_an_alias_at_the_new_version(cli, scale, tmp_path):
    assert cli("add", "scale", scale_model(tmp_path / "m3.onnx", 3.0), "--alias", "live").code == 0
    assert json.loads(cli("alias", "scale", "--json").out) == {"live": 2}


@pytest.mark.parametrize(
    ("files", "arguments", "says"),
    [
        ({}, ["nowhere.onnx"], "nowhere.onnx: no such file"),
        ({"m.onnx": ""}, ["m.onnx"], "onnxruntime refuses it"),
        ({"extra.toml": "[batching]\nmax_batch_sise = 7\n"}, ["good.onnx", "--config", "extra.toml"], "max_batch_size"),
        ({"s.json": '{"z": [[1, 2, 3]]}'}, ["good.onnx", "--sample", "s.json"], 'Known: x'),
        ({}, ["good.onnx", "--sample", "gone.json"], "gone.json: No such file"),
        ({}, ["good.onnx", "--config", "gone.toml"], "gone.toml: No such file"),
        ({"extra.toml": "= 3"}, ["good.onnx", "--config", "extra.toml"], "extra.toml"),
    ],
)  # fmt: skip
def test_add_refuses_what_it_cannot_use_in_one_line_and_registers_nothing(
    cli, tmp_path, monkeypatch, files, arguments, says
):
    monkeypatch.chdir(tmp_path)
    scale_model(tmp_path / "good.onnx")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    ran = cli("add", "m", *arguments)
    assert ran.code == 1
    assert says in ran.err
    assert ran.err.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ran.err
    assert json.loads(cli("list", "--json").out) == []


def test_a_pickle_is_refused_with_the_reason_and_the_safe_formats(cli, tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(LogisticRegression().fit([[0.0], [1.0]], [0, 1])))
    ran = cli("add", "m", path)
    assert ran.code == 1
    assert "--trust-code" in ran.err
    assert "skops" in ran.err


def test_a_name_that_cannot_be_one_is_refused(cli, scale):
    ran = cli("add", "no/name", scale)
    assert ran.code == 1
    assert '"no/name" cannot be a name' in ran.err


def test_list_shows_every_model_with_its_newest_version_and_aliases(cli, scale):
    cli("alias", "scale", "live", 1)
    ran = cli("list")
    assert "scale" in ran.out
    assert "live → 1" in ran.out
    (entry,) = json.loads(cli("list", "--json").out)
    assert entry["versions"] == [1]
    assert entry["aliases"] == {"live": 1}


def test_list_of_an_empty_store_says_how_to_begin(cli):
    assert "foretell add NAME PATH" in cli("list").out


def test_show_explains_signature_files_and_how_to_call(cli, scale):
    ran = cli("show", "scale")
    for part in (
        "Doubles",
        "x FP32[?, 3]",
        "y FP32[?, 3]",
        "scale.onnx",
        "model.onnx",
        "curl http://127.0.0.1:8080/v2/models/scale",
    ):
        assert part in ran.out


def test_an_unknown_model_is_answered_with_the_nearest_name(cli, scale):
    for verb in (
        ["show", "scael"],
        ["predict", "scael", "--json", "[[1,2,3]]"],
        ["check", "scael"],
        ["remove", "scael"],
    ):
        ran = cli(*verb)
        assert ran.code == 1
        assert 'Did you mean "scale"?' in ran.err


def test_an_alias_moves_and_its_history_is_kept(cli, scale, tmp_path):
    cli("add", "scale", scale_model(tmp_path / "m3.onnx", 3.0))
    assert "nothing → 1" in cli("alias", "scale", "live", 1).out
    assert "1 → 2" in cli("alias", "scale", "live", 2, "--expect", 1).out
    moves = json.loads(cli("alias", "scale", "--history", "--json").out)
    assert [(m["before"], m["after"]) for m in moves] == [(None, 1), (1, 2)]
    assert "2 → nothing" in cli("alias", "scale", "live", "--drop").out


def test_an_alias_that_somebody_else_moved_is_left_alone(cli, scale, tmp_path):
    cli("add", "scale", scale_model(tmp_path / "m3.onnx", 3.0))
    cli("alias", "scale", "live", 2)
    ran = cli("alias", "scale", "live", 1, "--expect", 1)
    assert ran.code == 1
    assert "2" in ran.err
    assert json.loads(cli("alias", "scale", "--json").out) == {"live": 2}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["scale", "live"], 2, "which version"),
        (["scale", "live", "two"], 2, "not a version number"),
        (["scale", "live", "9"], 1, "no version 9"),
        (["scale", "7", "1"], 1, "cannot be an alias"),
        (["gone"], 1, 'no model "gone"'),
    ],
)
def test_alias_refuses_what_makes_no_sense(cli, scale, arguments, code, says):
    ran = cli("alias", *arguments)
    assert ran.code == code
    assert says in ran.err


def test_remove_takes_one_version_and_spares_what_an_alias_means(cli, scale):
    cli("alias", "scale", "live", 1)
    refused = cli("remove", "scale@1")
    assert refused.code == 1
    assert "scale@live" in refused.err
    assert cli("remove", "scale@1", "--force").out == "removed scale@1\n"
    assert json.loads(cli("list", "--json").out) == []


def test_pack_makes_a_package_that_can_be_shown_and_added(cli, scale, tmp_path):
    assert cli("pack", scale, tmp_path / "out.zip").code == 0
    assert "x FP32[?, 3]" in cli("show", tmp_path / "out.zip").out
    assert cli("add", "other", tmp_path / "out.zip").code == 0
    again = cli("pack", scale, tmp_path / "out.zip")
    assert again.code == 1
    assert "is there already" in again.err


def test_check_runs_the_sample_through_a_real_replica(cli, scale):
    ran = cli("check", "scale", "--json")
    assert ran.code == 0, ran.err
    findings = json.loads(ran.out)
    assert findings["model"] == "scale@1"
    assert findings["max_abs_diff"] == 0.0
    assert findings["rows"] == 4


def test_check_of_a_corrupted_package_fails_and_names_the_file(cli, scale, home):
    (home / "packages/scale/1/model.onnx").write_bytes(b"rubbish")
    ran = cli("check", "scale")
    assert ran.code == 1
    assert "model.onnx differs from the sealed package" in ran.err


def test_check_of_a_model_that_answers_at_random_fails(cli, tmp_path):
    (tmp_path / "dice.py").write_text(
        "import numpy as np\n"
        'SIGNATURE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],'
        ' "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}]}\n'
        'def predict(inputs):\n    return {"y": np.random.rand(len(inputs["x"])).astype(np.float32)}\n'
    )
    ran = cli("check", tmp_path / "dice.py", "--trust-code")
    assert ran.code == 1
    assert 'output "y", row ' in ran.err
    assert "the replica answers otherwise" in ran.err


def test_predict_answers_as_table_json_and_csv(cli, scale):
    rows = '{"x": [[1, 2, 3], [4, 5, 6]]}'
    assert "2 4 6" in cli("predict", "scale", "--json", rows).out
    assert json.loads(cli("predict", "scale", "--json", rows, "-o", "json").out) == {"y": [[2, 4, 6], [8, 10, 12]]}
    assert cli("predict", "scale", "--json", rows, "-o", "csv").out.splitlines() == [
        "y_0,y_1,y_2",
        "2.0,4.0,6.0",
        "8.0,10.0,12.0",
    ]


def test_predict_reads_files_and_standard_input(cli, scale, tmp_path, monkeypatch):
    (tmp_path / "rows.json").write_text("[[1, 1, 1]]")
    (tmp_path / "rows.csv").write_text("a,b,c\n1,2,3\n")
    expected = {"y": [[2, 2, 2]]}
    assert json.loads(cli("predict", "scale", "--json", f"@{tmp_path / 'rows.json'}", "-o", "json").out) == expected
    assert "2 4 6" in cli("predict", "scale", "--csv", tmp_path / "rows.csv").out
    monkeypatch.setattr(sys, "stdin", StringIO("a,b,c\n2,2,2\n"))
    assert "4 4 4" in cli("predict", "scale", "--csv", "-").out


def test_predict_takes_a_model_file_without_a_store(cli, tmp_path):
    assert "5 10 15" in cli("predict", scale_model(tmp_path / "m5.onnx", 5.0), "--json", "[[1, 2, 3]]").out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "give one of text"),
        (["--json", "[[1]]", "--csv", "x.csv"], 2, "--json and --csv"),
        (["hello"], 1, "needs a model with one BYTES input"),
        (["--json", "[[1, 2"], 1, "--json"),
        (["--json", '"text"'], 1, "expected an object of columns"),
        (["--json", '{"z": [[1]]}'], 1, 'unknown input "z"'),
        (["--json", "{}"], 1, 'input "x" is missing'),
        (["--json", "[[1, 2]]"], 1, 'input "x" has shape [1, 2]'),
        (["--json", "[[1, 2, 3], [4]]"], 1, 'input "x" cannot be read'),
        (["--json", "@gone.json"], 1, "gone.json: No such file"),
        (["--image", "gone.png"], 1, "needs a model with one BYTES input"),
    ],
)
def test_predict_names_the_input_that_is_wrong(cli, scale, arguments, code, says):
    ran = cli("predict", "scale", *arguments)
    assert ran.code == code
    assert says in " ".join(ran.err.replace("│", " ").split())


def test_predict_at_a_server_that_is_not_there_says_so(cli):
    ran = cli("predict", "http://127.0.0.1:9/scale", "--json", "[[1]]")
    assert ran.code == 1
    assert "no server answers at 127.0.0.1:9" in ran.err


def test_an_unexpected_error_is_one_line_unless_debug_is_asked_for(cli, scale, monkeypatch):
    def broken(*_: object) -> None:
        raise KeyError("broken")

    monkeypatch.setattr("foretell.cli.list.open_store", broken)
    ran = cli("list")
    assert ran.code == 1
    assert ran.err.startswith("error: KeyError")
    with pytest.raises(KeyError):
        cli("--debug", "list")
