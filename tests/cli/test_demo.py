"""The demo: real models, real answers, commands that work when pasted, and nothing left after Ctrl-C."""

import os
import re
import signal
import socket
import string
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from examples import demo
from foretell.cli.child import ChildServer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SAID = {
    "curl": ('"outputs"',),
    "tritonclient": ("[0 1 2]",),
    "foretell predict": ("embedding", "label"),
    "foretell chat": string.ascii_letters + string.digits,
}
"""What a command that is pasted prints, any of it."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with the demo models that can be had here; digits always can. What a precision costs is measured, and
    takes a minute, elsewhere."""
    home = str(tmp_path_factory.mktemp("demo"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foretell.importers.llm._measure", lambda *_: None)
        models = demo.register(home)
    assert "digits" in models
    return home, models


def test_registering_again_adds_nothing(store, capsys):
    home, models = store
    assert demo.register(home) == models
    assert "digits@" not in capsys.readouterr().out


def test_the_answers_are_right_and_every_command_works_when_pasted(store, capsys):
    home, models = store
    quiet = ["--port", "0", "--grpc-port", "0", "--access-log", "none", "--store", home]
    with ChildServer([*models, *quiet]) as server:
        answers = {asked: answer for _, asked, answer, *_ in demo.ask(server.url, models)}
        assert answers["5 images of 0 1 2 3 4"].startswith("0 1 2 3 4")
        if "lite0" in models:
            assert "daisy" in answers["flower.jpg"]
        if "minilm" in models:
            near, far = (float(a.split()[-1]) for asked, a in answers.items() if "~" in asked)
            assert near > 0.5 > far
        if "smollm2" in models:
            demo.stream(server.url)
            assert "the first after" in capsys.readouterr().out
        for tool, command in demo.commands(server.url, models).items():
            if tool == "foretell chat":  # the answer of a model that draws its words ends when it will
                command += " --max-tokens 40"
            done = subprocess.run(
                ["bash", "-c", command], input="What is two plus two?\n", capture_output=True, text=True, cwd=ROOT,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{tool}: {done.stderr}"
            assert any(word in done.stdout for word in SAID[tool]), done.stdout
            if tool == "foretell chat":  # what a model says that draws its words is not known beforehand
                assert re.search(r"[1-9]\d* tokens", done.stderr), done.stderr


def test_ctrl_c_drains_and_leaves_nothing_running(store):
    home, _ = store
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "digits", "--port", "0", "--grpc-port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FORETELL_HOME": home},
    )
    timer = threading.Timer(100, process.kill)
    timer.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C drains"):
            break
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate()
    timer.cancel()
    assert process.returncode == 0
    assert "nothing is left running" in rest
    assert not any(p.is_running() for p in family)
    assert any("/docs" in line for line in lines)


def test_an_unknown_demo_model_is_wrong_usage(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "digitz"])
    with pytest.raises(SystemExit) as end:
        demo.main()
    assert end.value.code == 2
    assert "no demo model digitz; there are digits, minilm, smollm2, lite0" in capsys.readouterr().err


def test_show_tells_how_to_send_an_image(store, cli):
    home, models = store
    if "lite0" not in models:
        pytest.skip("the packages of lite0 are not installed")
    assert "foretell predict http://127.0.0.1:8080/lite0 --image FILE" in cli("show", "lite0", "--store", home).out
    photo = dict(demo.sample_images())["flower.jpg"]
    assert "daisy" in cli("predict", "lite0", "--image", photo, "--store", home).out


def test_ports_in_use_are_left_alone():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert demo.free_port(port) == 0
    assert demo.free_port(port) == port
