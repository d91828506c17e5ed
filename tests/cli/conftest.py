"""A store with a tiny real model, and the command line called in this process."""

from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
from onnx import TensorProto, helper

from foretell.cli.main import command


class Ran(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


def scale_model(path: Path, factor: float = 2.0) -> Path:
    """An ONNX model: x FP32[?, 3] → y = factor · x."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty store that every command of the test uses."""
    folder = tmp_path / "home"
    monkeypatch.setenv("FORETELL_HOME", str(folder))
    monkeypatch.delenv("FORETELL_DATABASE", raising=False)
    return folder


@pytest.fixture
def cli(home, capsys):
    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            command().main([str(a) for a in arguments], prog_name="foretell")
        printed = capsys.readouterr()
        return Ran(int(end.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def scale(cli, tmp_path):
    """ "scale" version 1 (doubles) in the store; returns the model file."""
    path = scale_model(tmp_path / "scale.onnx")
    added = cli("add", "scale", path, "--description", "Doubles")
    assert added.code == 0, added.err
    return path
