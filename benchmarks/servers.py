"""How each server is started for one model, and where it answers. Everything tuned is said here, beside the flag.

Peers run with one intra-op thread per session, and with the best of the settings that `python -m benchmarks.tune`
tries (workers, batch, wait); run it on a quiet machine before you trust a close race.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.environments import APPS, PEERS, Unavailable, ensure, probe
from benchmarks.models import Model
from benchmarks.processes import ServerProcess, answers, free_port

FORETELL = [str(Path(sys.executable).parent / "foretell")]


@dataclass
class Server:
    """A running server. `json_path` and `binary_path` are where infer requests go ("" where it has none)."""

    name: str
    process: ServerProcess
    port: int
    json_path: str
    binary_path: str = ""
    grpc_port: int = 0
    settings: str = ""


@dataclass(frozen=True)
class Tuning:
    """What the search may vary; None leaves the choice made below."""

    workers: int | None = None
    batch: int | None = None
    wait_ms: float | None = None
    more: dict[str, str] = field(default_factory=dict)

    def env(self, model: Model, port: int) -> dict[str, str]:
        values = {
            "BENCH_MODEL": str(model.path),
            "BENCH_PORT": str(port),
            "PYTHONPATH": str(APPS),
            "OMP_NUM_THREADS": "1",
            **self.more,
        }
        named = {"BENCH_WORKERS": self.workers, "BENCH_BATCH": self.batch, "BENCH_WAIT_MS": self.wait_ms}
        return values | {key: f"{value:g}" for key, value in named.items() if value is not None}


def fastapi(model: Model, tuning: Tuning = Tuning()) -> Server:
    """Two uvicorn workers on uvloop and httptools, access log off."""
    python, port = ensure("fastapi"), free_port()
    workers = tuning.workers or 2
    command = [str(python), "-m", "uvicorn", "app:app", "--app-dir", str(APPS / "fastapi"), "--port", str(port)]
    command += ["--workers", str(workers), "--loop", "uvloop", "--http", "httptools"]
    command += ["--no-access-log", "--log-level", "warning"]
    process = ServerProcess(f"fastapi-{model.name}", command, tuning.env(model, port))
    process.wait_ready(lambda: answers(f"http://127.0.0.1:{port}/openapi.json"))
    route = f"/v2/models/{model.name}/infer"
    return Server("FastAPI", process, port, route, f"/binary/{model.name}", settings=f"{workers} uvicorn workers")


def mosec(model: Model, tuning: Tuning = Tuning(workers=1, batch=64, wait_ms=1)) -> Server:
    python, port = ensure("mosec"), free_port()
    command = [str(python), str(APPS / "mosec" / "app.py"), "--address", "127.0.0.1", "--port", str(port)]
    process = ServerProcess(f"mosec-{model.name}", [*command, "--log-level", "error"], tuning.env(model, port))
    process.wait_ready(lambda: answers(f"http://127.0.0.1:{port}/metrics"))
    return Server("mosec", process, port, "/inference", settings=_batching(tuning))


def litserve(model: Model, tuning: Tuning = Tuning(workers=1, batch=64, wait_ms=1)) -> Server:
    python, port = ensure("litserve"), free_port()
    command = [str(python), str(APPS / "litserve" / "app.py")]
    process = ServerProcess(f"litserve-{model.name}", command, tuning.env(model, port), cwd=_folder("litserve"))
    process.wait_ready(lambda: answers(f"http://127.0.0.1:{port}/health"))
    return Server("LitServe", process, port, "/predict", settings=_batching(tuning))


def mlserver(model: Model, tuning: Tuning = Tuning(workers=0, batch=64, wait_ms=1)) -> Server:
    """Adaptive batching; `workers` are its parallel workers, 0 runs the model beside the server."""
    python, port, grpc, metrics = ensure("mlserver"), free_port(), free_port(), free_port()
    folder = _folder("mlserver")
    shutil.copy(APPS / "mlserver" / "app.py", folder / "bench_app.py")
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "parallel_workers": tuning.workers,
        "debug": False,
        "gzip_enabled": False,
    }
    described = {
        "name": model.name,
        "implementation": "bench_app.Infer",
        "max_batch_size": tuning.batch,
        "max_batch_time": (tuning.wait_ms or 0) / 1000,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(described))
    env = tuning.env(model, port)
    env["PYTHONPATH"] += os.pathsep + str(folder)
    command = [str(python.parent / "mlserver"), "start", str(folder)]
    process = ServerProcess(f"mlserver-{model.name}", command, env, cwd=folder)
    process.wait_ready(lambda: answers(f"http://127.0.0.1:{port}/v2/models/{model.name}/ready"))
    route = f"/v2/models/{model.name}/infer"
    return Server("MLServer", process, port, route, grpc_port=grpc, settings=_batching(tuning))


_TRITON_CONFIG = """name: "{name}"
backend: "python"
max_batch_size: {batch}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 64 ] }} ]
output [
  {{ name: "label" data_type: TYPE_INT64 dims: [ 1 ] reshape: {{ shape: [ ] }} }},
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ 10 ] }}
]
instance_group [ {{ kind: KIND_CPU count: {workers} }} ]
dynamic_batching {{ max_queue_delay_microseconds: {wait:.0f} }}
"""


def triton(model: Model, tuning: Tuning = Tuning(workers=1, batch=64, wait_ms=0)) -> Server:
    """The server binary of the nvidia-pytriton wheel with its Python backend; no PyTriton in between.

    The wheel carries one backend stub per Python version; each needs that version's libpython, which the wheel
    brings for one version only. The stub of the environment's own version is laid beside the backend, libpython
    comes from that interpreter.
    """
    if sys.platform != "linux":
        raise Unavailable("the Triton server binary runs on Linux only")
    python = ensure("triton", ("3.11", "3.12", "3.10", "3.9"), shared=True)
    facts = probe(python) or {}
    site = python.parent.parent / "lib" / f"python{facts['version']}" / "site-packages"
    wheel = site / "pytriton" / "tritonserver"
    stub = wheel / "python_backend_stubs" / facts["version"] / "triton_python_backend_stub"
    if not stub.is_file():
        raise Unavailable(f"the nvidia-pytriton wheel has no backend stub for Python {facts['version']}")
    # The stub finds its libraries by a path relative to itself, so it moves one floor, not out of the wheel.
    shutil.copy(stub, wheel / "backends" / "python" / "triton_python_backend_stub")
    folder = _folder("triton") / model.name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    shutil.copy(APPS / "triton" / "model.py", folder / "1" / "model.py")
    config = {"name": model.name, "batch": tuning.batch, "workers": tuning.workers}
    (folder / "config.pbtxt").write_text(_TRITON_CONFIG.format(**config, wait=(tuning.wait_ms or 0) * 1000))
    port, grpc = free_port(), free_port()
    env = tuning.env(model, port)
    env["PYTHONPATH"] += os.pathsep + str(site)
    libraries = [str(site / "nvidia_pytriton.libs"), str(Path(facts["library"]).parent)]
    env |= {"PYTHONHOME": facts["home"], "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    command = [str(wheel / "bin" / "tritonserver"), f"--model-repository={folder.parent}"]
    command += [f"--backend-directory={wheel / 'backends'}", "--http-address=127.0.0.1", f"--http-port={port}"]
    command += [f"--grpc-port={grpc}", "--grpc-address=127.0.0.1", "--allow-metrics=false", "--log-info=false"]
    process = ServerProcess(f"triton-{model.name}", command, env)
    process.wait_ready(lambda: answers(f"http://127.0.0.1:{port}/v2/models/{model.name}/ready"))
    route = f"/v2/models/{model.name}/infer"
    return Server("Triton core", process, port, route, route, grpc, _batching(tuning))


def _batching(tuning: Tuning) -> str:
    return f"{tuning.workers or 0} workers, batch ≤ {tuning.batch}, wait ≤ {tuning.wait_ms:g} ms"


def _folder(name: str) -> Path:
    folder = PEERS / "run" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def mosec_orjson(model: Model) -> Server:
    """mosec with orjson in the worker instead of its default, the standard library's JSON."""
    server = mosec(model, Tuning(workers=1, batch=64, wait_ms=1, more={"BENCH_ORJSON": "1"}))
    server.name = "mosec + orjson"
    return server


def foretell_store(model: Model) -> dict[str, str]:
    """The environment of a store under `.peers` with the model added once. Raises `Unavailable` if `add` fails."""
    env = {"FORETELL_HOME": str(PEERS / "store" / model.name)}
    if not Path(env["FORETELL_HOME"], "added").exists():
        shutil.rmtree(env["FORETELL_HOME"], ignore_errors=True)
        command = [*FORETELL, "add", model.name, str(model.path)]
        done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"foretell add {model.name} failed: {(done.stderr or done.stdout).strip()[-300:]}")
        Path(env["FORETELL_HOME"], "added").touch()
    return env


def foretell(model: Model, observe: bool = True) -> Server:
    """foretell as it is installed, nothing tuned. `observe`: metrics, Parquet observations and the access log."""
    env, port, grpc = foretell_store(model), free_port(), free_port()
    folder = _folder(f"foretell-{model.name}-{'on' if observe else 'off'}")
    observations = f'access_log = "{folder}/access.log"\nfolder = "{folder}/observations"'
    config = folder / "foretell.toml"
    config.write_text(f"[observations]\n{observations if observe else 'enabled = false'}\n")
    command = [*FORETELL, "serve", model.name, "--port", str(port), "--grpc-port", str(grpc), "--config", str(config)]
    name = "foretell" if observe else "foretell, unobserved"
    process = ServerProcess(f"foretell-{model.name}-{'on' if observe else 'off'}", command, env)
    process.wait_ready(lambda: answers(f"http://127.0.0.1:{port}/v2/models/{model.name}/ready"), poll_s=0.02)
    route = f"/v2/models/{model.name}/infer"
    return Server(name, process, port, route, route, grpc, "defaults")


PEER_STARTS: dict[str, Callable[[Model], Server]] = {
    "FastAPI": fastapi,
    "mosec": mosec,
    "mosec + orjson": mosec_orjson,
    "Triton core": triton,
    "MLServer": mlserver,
    "LitServe": litserve,
}
