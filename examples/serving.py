"""A server for the examples: `foretell serve` on free ports, ended when the block ends."""

import contextlib
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """Run `foretell serve` with `arguments`; gives its URL once it is ready."""
    command = [sys.executable, "-m", "foretell", "serve", *arguments]
    command += ["--port", "0", "--grpc-port", "-1", "--access-log", "none", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            if not line:
                sys.exit("the server did not start; its reason stands above")
            yield json.loads(line)["url"]
        finally:
            server.send_signal(signal.SIGINT)


def foretell(*arguments: str) -> str:
    """Run one `foretell` command and return what it printed."""
    command = [sys.executable, "-m", "foretell", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def ask(url: str, model: str, data: list[Any], parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """Infer one tensor `X`; rows of FP32. Returns the answer's outputs by name."""
    rows = {"name": "X", "datatype": "FP32", "shape": [len(data), len(data[0])], "data": data}
    body = json.dumps({"inputs": [rows], "parameters": parameters or {}}).encode()
    with urllib.request.urlopen(f"{url}/v2/models/{model}/infer", body) as answer:
        document = json.load(answer)
    return {"version": document["model_version"], **{o["name"]: o["data"] for o in document["outputs"]}}
