"""`foretell serve` as its users run it: a process that answers, follows the store, drains, and leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from foretell.cli.child import ChildServer
from foretell.core.errors import ForetellError
from tests.cli.conftest import scale_model

QUIET = ("--port", "0", "--grpc-port", "-1", "--access-log", "none")
ASK = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}


def ask(url: str, name: str = "scale") -> list[float]:
    request = urllib.request.Request(f"{url}/v2/models/{name}/infer", data=json.dumps(ASK).encode())
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)["outputs"][0]["data"]


def ask_in_vain(url: str) -> None:
    with pytest.raises((OSError, urllib.error.HTTPError)):
        ask(url)


def until(condition, what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for: {what}"
        time.sleep(0.05)


@pytest.fixture
def server(scale, home):
    with ChildServer(["scale", *QUIET]) as started:
        yield started


def test_add_serve_ask_move_the_alias_drain(cli, server, tmp_path):
    assert server.models == ["scale@1"]
    assert ask(server.url) == [2, 4, 6]
    assert "2 4 6" in cli("predict", f"{server.url}/scale", "--json", "[[1, 2, 3]]").out
    assert "2 4 6" in cli("predict", server.url, "--json", "[[1, 2, 3]]").out
    assert "2 4 6" in cli("predict", f"{server.url}/v2/models/scale/versions/1", "--json", "[[1, 2, 3]]").out

    # A new version and a moved alias are picked up under load, and no request fails.
    failures: list[BaseException] = []
    answers: set[float] = set()
    stopping = threading.Event()

    def keep_asking() -> None:
        while not stopping.is_set():
            try:
                answers.add(ask(server.url)[0])
            except BaseException as error:
                failures.append(error)

    asker = threading.Thread(target=keep_asking)
    asker.start()
    try:
        assert cli("add", "scale", scale_model(tmp_path / "m5.onnx", 5.0), "--alias", "live").code == 0
        until(lambda: 5.0 in answers, "version 2 to answer")
        assert cli("alias", "scale", "live", 1, "--expect", 2).code == 0
        answers.clear()
        until(lambda: ask(server.url) == [2, 4, 6], "version 1 to answer again")
    finally:
        stopping.set()
        asker.join()
    assert failures == []

    family = psutil.Process(server.process.pid).children(recursive=True)
    assert family
    assert server.stop() == 0
    assert not any(process.is_running() for process in family)


def test_a_server_says_what_it_refuses_in_the_client_s_words(cli, server):
    ran = cli("predict", f"{server.url}/scael", "--json", "[[1, 2, 3]]")
    assert ran.code == 1
    assert 'Did you mean "scale"?' in ran.err


def test_the_gateway_loads_neither_onnxruntime_nor_pyarrow(server):
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libpython" in maps or "python" in maps
    assert "onnxruntime" not in maps
    assert "pyarrow" not in maps


def test_a_model_file_is_served_without_a_store_and_without_onnxruntime_in_the_gateway(home, tmp_path):
    with ChildServer([str(scale_model(tmp_path / "other.onnx", 4.0)), *QUIET]) as server:
        assert ask(server.url, "other") == [4, 8, 12]
        assert "onnxruntime" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_ctrl_c_drains_and_a_second_one_ends_at_once(scale, home):
    server = ChildServer(["scale", *QUIET]).wait()
    server.process.send_signal(signal.SIGINT)
    server.process.communicate(timeout=30)
    assert server.process.returncode == 0

    server = ChildServer(["scale", *QUIET]).wait()
    children = psutil.Process(server.process.pid).children(recursive=True)
    # A stopped replica cannot end, so the drain hangs until somebody insists.
    for child in children:
        child.suspend()
    request = threading.Thread(target=ask_in_vain, args=(server.url,))
    request.start()
    time.sleep(0.3)
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    server.process.send_signal(signal.SIGINT)
    server.process.communicate(timeout=30)
    request.join()
    assert server.process.returncode == 130
    until(lambda: not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children), "replicas to end")


def test_two_servers_on_one_port_the_second_says_which_flag_to_use(server, home):
    port = server.url.rpartition(":")[2]
    with pytest.raises(ForetellError, match=f"port {port} .*--port"):
        ChildServer(["scale", "--port", port, "--grpc-port", "-1"]).wait()


def test_an_unknown_model_stops_the_start_with_the_nearest_name(scale, home):
    with pytest.raises(ForetellError, match='Did you mean "scale"'):
        ChildServer(["scael", *QUIET]).wait()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server]\nprot = 1\n", 'Did you mean "port"'),
        ('[models.scale.batching]\nmax_batch_sise = 3\nserve = ["scale"]', "max_batch_size"),
        ("[models.scael.batching]\n", 'Did you mean "scale"'),
        ("serve = [", "foretell.toml"),
        ("", "nothing to serve"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused_by_key(cli, scale, tmp_path, text, says):
    (tmp_path / "foretell.toml").write_text(text)
    models = [] if says == "nothing to serve" else ["scale"]
    ran = cli("serve", *models, "--config", tmp_path / "foretell.toml", *QUIET)
    assert ran.code == 1
    assert says in ran.err


def test_a_configuration_is_enough_to_serve_and_flags_win_over_it(scale, home, tmp_path):
    (tmp_path / "foretell.toml").write_text(
        'serve = ["scale"]\n[server]\nport = 1\n[models.scale.batching]\nmax_batch_size = 2\n'
    )
    arguments = [
        "--config",
        str(tmp_path / "foretell.toml"),
        *QUIET,
        "--replicas",
        "2",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    with ChildServer(arguments) as server:
        assert ask(server.url) == [2, 4, 6]
        until(lambda: len(psutil.Process(server.process.pid).children()) == 2, "two replicas")


def test_the_announcement_for_people_names_the_addresses(scale, home):
    process = subprocess.Popen(
        [sys.executable, "-m", "foretell", "serve", "scale", *QUIET],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ.copy(),
    )
    lines = [process.stdout.readline() for _ in range(3)]
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert "serves scale@1" in lines[0]
    assert "http://127.0.0.1:" in lines[1]
    assert lines[2].startswith("ready after")
