"""`check` and `predict` of a language model, with scripted generators in place of the engine."""

import json
from pathlib import Path

import pytest

from foretell.app import model as model_module
from foretell.cli import check_generation
from tests.fleet.scripted import ScriptedGenerator, launch_scripted, prompt
from tests.plane.test_generate import MANIFEST


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(model_module, "load_generator", lambda package, *settings: ScriptedGenerator())
    monkeypatch.setattr(check_generation, "LocalProcess", launch_scripted)
    folder = tmp_path / "talker"
    folder.mkdir()
    (folder / "model.toml").write_text(MANIFEST)
    (folder / "model.onnx").write_bytes(b"")
    return folder


def test_a_check_compares_what_a_replica_says_with_what_this_process_says(cli, package):
    said = cli("check", package)
    assert said.code == 0, said.err
    assert "is sound" in said.out
    assert "tokens/s" in said.out
    found = json.loads(cli("check", package, "--json").out)
    assert (found["model"], found["tokens"], found["prompt_tokens"]) == ("talker@1", check_generation.TOKENS, 7)
    assert found["text"].startswith(" 0 1 2")


def test_a_check_fails_where_the_two_differ(cli, package, monkeypatch):
    class Other(ScriptedGenerator):
        def submit(self, number, request):
            super().submit(number, type(request)(prompt(tokens=2)))

    monkeypatch.setattr(model_module, "load_generator", lambda package, *settings: Other())
    failed = cli("check", package)
    assert failed.code == 1
    assert "not repeatable" in failed.err


def test_predict_continues_a_text(cli, package):
    assert " 0 1 2" in cli("predict", package, "Once upon a time").out
    answer = json.loads(cli("predict", package, prompt(tokens=2), "--output", "json").out)
    assert answer == {"text_output": [" 0 1"]}
