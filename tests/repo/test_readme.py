"""The code blocks of README.md and of docs/ run as they stand, in order, against real models."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from foretell.app.config import load_config
from tests.repo.repository import ROOT


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with an empty store, and the `foretell` of this environment first on the path."""
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script: str) -> str:
    done = subprocess.run(
        ["bash", "-euc", script], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, script + done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def server(command: str):
    """The server of a block, on free ports; gives its addresses."""
    words = command.split("#")[0].split()
    words += ["--port", "0", "--grpc-port", "0", "--access-log", "none", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
            process.wait(60)


def at(url: str, script: str) -> str:
    return script.replace("127.0.0.1:8080", url.removeprefix("http://"))


def ask(url: str, script: str) -> str:
    """What a page's Python prints when it asks the server at `url`."""
    done = subprocess.run(
        [sys.executable, "-c", at(url, script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, script + done.stderr
    return done.stdout


def iris(path: Path) -> None:
    """A classifier of four numbers, as the README's model file."""
    skl2onnx = pytest.importorskip("skl2onnx")
    datasets = pytest.importorskip("sklearn.datasets")
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows, kinds = datasets.load_iris(return_X_y=True)
    model = linear_model.LogisticRegression(max_iter=500).fit(rows, kinds)
    onnx = skl2onnx.to_onnx(model, rows[:1].astype("float32"), options={"zipmap": False}, target_opset=17)
    path.write_bytes(onnx.SerializeToString())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_readme_does_what_it_says(workplace):
    iris(workplace / "digits.onnx")
    start, curl, language, better = blocks("README.md", "bash")
    assert [line.split()[1] for line in language.strip().splitlines()] == ["add", "serve", "chat"]  # run in tests/e2e
    add, serve = start.strip().splitlines()
    assert "added digits@1" in run(add)
    with server(serve) as ready:
        answer = json.loads(run(at(ready["url"], curl)))
        assert (answer["model_version"], answer["outputs"][0]["data"]) == ("1", [0])
        (script,) = blocks("README.md", "python")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert "label" in done.stdout
        iris_again(workplace / "better.onnx")
        assert "added digits@2" in run(better)
        until = time.monotonic() + 60
        while json.loads(run(at(ready["url"], curl)))["model_version"] == "1" and time.monotonic() < until:
            time.sleep(0.1)
        assert json.loads(run(at(ready["url"], curl)))["model_version"] == "2"


def iris_again(path: Path) -> None:
    """The same model with another producer name, so that its contents are another version's."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path.with_name("digits.onnx"))
    model.graph.name = "better"
    onnx.save(model, path)


def test_the_python_page_shows_test_doubles_that_work():
    (script,) = [block for block in blocks("docs/python.md", "python") if "FakePlane" in block]
    exec(compile(script, "docs/python.md", "exec"), {})


def test_the_serving_page_shows_a_configuration_that_is_accepted(tmp_path):
    (document,) = blocks("docs/serving.md", "toml")
    path = tmp_path / "foretell.toml"
    path.write_text(document)
    config = load_config(path, environment={})
    assert config.serve == ("minilm", "digits@2")
    assert config.models["minilm"].batching == {"target_p99_ms": 50}


@pytest.mark.slow
def test_the_clients_page_shows_clients_that_work(workplace):
    pytest.importorskip("tritonclient.http")
    signature = 'inputs = [{name = "X", datatype = "FP32", shape = [-1, 64]}]\n'
    outputs = 'outputs = [{name = "label", datatype = "INT64", shape = [-1]}]\n'
    Path("digits.py").write_text("def predict(X):\n    return {'label': X.argmax(axis=1)}\n")
    Path("digits.toml").write_text(f"[signature]\n{signature}{outputs}")
    vectors = 'outputs = [{name = "embedding", datatype = "FP32", shape = [-1, 3]}]\n'
    text = 'inputs = [{name = "text", datatype = "BYTES", shape = [-1]}]\n'
    Path("minilm.py").write_text(
        "import numpy as np\ndef predict(text):\n    return {'embedding': np.ones((len(text), 3), np.float32)}\n"
    )
    Path("minilm.toml").write_text(f"[signature]\n{text}{vectors}")
    for name in ("digits", "minilm"):
        run(f"foretell add {name} {name}.py --config {name}.toml --trust-code")
    with server("foretell serve digits minilm --trust-code") as ready:
        for script in blocks("docs/clients.md", "python"):
            module = re.search(r"^import (openai|tritonclient)", script, re.MULTILINE)
            if module:
                pytest.importorskip(module[1])
            ask(ready["url"], script)
        for page in ("/docs", "/openapi.json", "/metrics", "/healthz", "/admin/deployments"):
            with urllib.request.urlopen(ready["url"] + page) as answer:
                assert answer.status == 200


@pytest.mark.slow
def test_the_page_of_language_models_does_what_it_says(workplace):
    """With a tiny model of random weights in place of the one that the page names."""
    pytest.importorskip("transformers", reason="transformers makes the tiny model")
    pytest.importorskip("torch", reason="transformers runs on torch")
    pytest.importorskip("openai")
    from tests.llm import tiny_llama

    (script,) = blocks("docs/llm.md", "bash")
    add, serve = script.strip().splitlines()
    tiny_llama.write_file(tiny_llama.write_folder(workplace / "tiny"), workplace / Path(add.split()[-1]).name)
    assert "added smollm2@1" in run(f"{add} --no-measure")
    (document,) = blocks("docs/llm.md", "toml")
    Path("foretell.toml").write_text(document.replace("context = 4096", "context = 128"))
    with server(f"{serve} --config foretell.toml") as ready:
        for script in blocks("docs/llm.md", "python"):
            said = ask(ready["url"], script)
            assert said.strip()
