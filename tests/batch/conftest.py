"""A store with small models, and jobs run on them in this process or by the command line in processes of their own."""

import asyncio
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
from onnx import TensorProto, helper

from foretell.app.batch import BatchService, submit
from foretell.app.config import Config, ModelSettings, ServerSettings
from foretell.batch.report import Report
from foretell.batch.source import Source
from foretell.batch.spec import JobSpec, Label, Reading, Writing, decode_spec, encode
from foretell.core.column_map import parse_column_map
from foretell.core.reference import parse_reference
from foretell.fleet import worker
from foretell.fleet.spec import WorkerSpec
from foretell.importers import import_model
from foretell.store.job import JobInfo
from foretell.store.store import Store

PYTHON_MODEL = """
import msgspec
import numpy as np
{code}
"""
SIGNATURE = """[signature]
inputs = [{ name = "x", datatype = "FP32", shape = [-1] }]
outputs = [{ name = "y", datatype = "FP32", shape = [-1] }]
"""


def linear(path: Path) -> Path:
    """An ONNX model: X FP32[?, 2] → y = X · (1, 10), and pair [?, 2] = 2 · X."""
    weights = onnx.numpy_helper.from_array(np.array([[1.0], [10.0]], np.float32), "weights")
    two = onnx.numpy_helper.from_array(np.array(2.0, np.float32), "two")
    axes = onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["X", "weights"], ["column"]),
            helper.make_node("Squeeze", ["column", "axes"], ["y"]),
            helper.make_node("Mul", ["X", "two"], ["pair"]),
        ],
        "linear",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", 2])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("pair", TensorProto.FLOAT, ["n", 2]),
        ],
        [weights, two, axes],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["__main__", __name__, "foretell.accel.ort", "foretell.runtimes.onnx"])


class Forked:
    """A replica that is forked from a process which has imported its modules already: half a second less for each of
    the many small jobs. The command line starts its replicas as it always does.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self.sock, theirs = socket.socketpair()
        self._child = FORKS.Process(target=worker.serve, args=(theirs, spec), daemon=True)
        self._child.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return self._child.pid or 0

    def kill(self) -> None:
        self._child.kill()

    def wait(self, timeout_s: float) -> str | None:
        self._child.join(timeout_s)
        return None if self._child.exitcode is None else f"exit status {self._child.exitcode}"


class World:
    """A folder with a store. `batch` runs a job here, or on Ray if `ray` is set; `cli` runs the real command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store.open(folder / "home")
        self.config = Config(server=ServerSettings(trust_code=True), models={})
        self.ray: str | None = None
        self.tell = lambda progress: None

    def add(self, name: str, model: Path, config: dict | None = None) -> None:
        out = self.folder / "made" / name
        import_model(model, out, trust_code=True)
        self.store.add(name, out)

    def add_python(self, name: str, code: str, signature: str = SIGNATURE) -> None:
        """A model that is a Python file with `predict`."""
        folder = self.folder / "python" / name
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(PYTHON_MODEL.format(code=code))
        (folder / "model.toml").write_text(
            f'runtime = "function"\nartifact = "model.py"\ntrust_code = true\n{signature}'
        )
        self.store.add(name, folder)

    def table(self, name: str, **columns) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pa.parquet.write_table(pa.table(columns), path)
        return path

    def spec(self, model: str, source, output: str = "out", **more) -> JobSpec:
        info = self.store.resolve(parse_reference(model))
        sources = [source] if isinstance(source, str | Path) else source
        label = more.pop("label", "")
        reading = Reading(tuple(map(str, sources)), parse_column_map(more.pop("map", ())), more.pop("where", ""))
        writing = Writing(str(self.folder / output), more.pop("format", "parquet"), more.pop("keep", None))
        truth = Label(*label.partition("=")[::2]) if label else None
        return JobSpec(str(info), info.digest, reading, writing, truth, **more)

    def batch(self, model: str, source, output: str = "out", *, resume: bool = False, **more) -> Report:
        """Submit and run to the end, in this process with real replicas."""
        return self.run(self.spec(model, source, output, **more), resume)

    def run(self, spec: JobSpec, resume: bool = False) -> Report:
        found = Source(spec.reading.paths)
        return self.go(submit(self.store, spec, found, resume), found)

    def run_again(self, job: JobInfo, **changes) -> Report:
        """Resume a job as `foretell jobs resume` does, its spec changed."""
        spec = msgspec.structs.replace(decode_spec(job.spec), **changes)
        return self.go(msgspec.structs.replace(job, spec=encode(spec)), Source(spec.reading.paths))

    def go(self, job: JobInfo, found: Source) -> Report:
        async def run() -> Report:
            return await BatchService(self.config, self.store, Forked, self.ray).run(job, found, self.tell)

        return asyncio.run(run())

    def single(self, name: str) -> None:
        """One replica with one thread: starting several takes longer than these jobs."""
        models = {**self.config.models, name: ModelSettings(replicas={"count": 1, "threads": 1})}
        self.config = Config(server=self.config.server, models=models)

    def rows(self, output: str = "out") -> pa.Table:
        """Everything in an output folder, as any reader of folders sees it."""
        return read(self.folder / output)

    def errors(self, output: str = "out") -> list[dict]:
        folder = self.folder / output / "_errors"
        lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    def cli(self, *arguments: object, **more) -> subprocess.Popen:
        command = [sys.executable, "-m", "foretell", *map(str, arguments)]
        environment = {**os.environ, "FORETELL_HOME": str(self.folder / "home")}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
        )

    def job(self):
        return self.store.jobs.all()[0]


def read(folder: Path) -> pa.Table:
    return pa.dataset.dataset(str(folder), format="parquet", partitioning="hive").to_table()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.store.close()


@pytest.fixture
def linear_world(world):
    """ "linear" in the store, on one replica."""
    world.add("linear", linear(world.folder / "linear.onnx"))
    world.single("linear")
    return world


@pytest.fixture
def doubler(world):
    """ "double" in the store: y = 2 · x; it raises at -1 and dies at -2."""
    world.add_python(
        "double",
        "import os\ndef predict(x):\n    if (x == -1).any(): raise ValueError('minus one')\n"
        "    if (x == -2).any(): os._exit(3)\n    return {'y': x * 2}",
    )
    world.single("double")
    return world
