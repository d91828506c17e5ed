"""How many threads a graph gets: those of its replica, unless it is so small that they would only wait."""

import pytest
from zoo import onnx_kind, text_kind

from foretell.core.settings import ReplicaSettings
from foretell.runtimes import load, onnx


@pytest.fixture
def small(tmp_path):
    return onnx_kind(tmp_path).package.artifact


def test_a_graph_that_is_done_before_its_threads_have_met_gets_one(small, monkeypatch):
    monkeypatch.setattr(onnx, "time_one_thread", lambda path, rows: 20e-6)
    assert onnx.choose_threads(small, 4) == 1


@pytest.mark.parametrize("seconds", [0.01, None])
def test_a_slower_graph_and_one_that_cannot_be_timed_get_the_replica_s(small, monkeypatch, seconds):
    monkeypatch.setattr(onnx, "time_one_thread", lambda path, rows: seconds)
    assert onnx.choose_threads(small, 4) == 4


def test_a_large_file_is_not_even_timed(small, monkeypatch):
    monkeypatch.setattr(onnx, "TINY_BYTES", 10)
    monkeypatch.setattr(onnx, "time_one_thread", lambda path, rows: pytest.fail("timed"))
    assert onnx.choose_threads(small, 4) == 4


def test_a_tabular_graph_can_be_timed_and_one_of_variable_axes_cannot(small, tmp_path):
    (tmp_path / "text").mkdir()
    assert onnx.time_one_thread(small, 8) > 0
    assert onnx.time_one_thread(text_kind(tmp_path / "text").package.artifact, 8) is None


def test_both_ways_give_the_same_answers(tmp_path, monkeypatch):
    kind = onnx_kind(tmp_path)
    answers = []
    for budget in (1.0, 0.0):
        monkeypatch.setattr(onnx, "TINY_SECONDS", budget)
        answers.append(load(kind.package, ReplicaSettings(threads=2)).predict(kind.inputs)["label"].tolist())
    assert answers[0] == answers[1]
