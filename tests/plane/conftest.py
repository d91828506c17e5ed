"""Planes over real replica processes whose models are small Python files."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foretell.core.observation import Observation
from foretell.core.reference import parse_reference
from foretell.core.request import Request, Response
from foretell.core.routing import Route, RoutingTable, Target
from foretell.core.settings import BatchingSettings, CacheSettings, ReplicaSettings
from foretell.fleet.launcher import LocalProcess
from foretell.fleet.spec import fit
from foretell.plane.deployment import Deployment
from foretell.plane.plane import Plane
from foretell.plane.spec import DeploymentSpec
from foretell.store.manifest import decode_manifest

MANIFEST = """
runtime = "function"
artifact = "model.py"
trust_code = true
[signature]
inputs = [{ name = "x", datatype = "FP32", shape = [-1] }]
outputs = [{ name = "y", datatype = "FP32", shape = [-1] }]
"""


class Bench:
    """A plane with helpers: `deploy` a Python file as a model, `ask` it for an answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.observations: list[Observation] = []
        self.plane = Plane(LocalProcess, self.observations.append)

    async def deploy(self, code: str, name: str = "m", version: str = "1", **settings) -> Deployment:
        package = self.folder / name / version
        package.mkdir(parents=True)
        (package / "model.py").write_text(code)
        (package / "model.toml").write_text(MANIFEST + settings.pop("extra", ""))
        spec = DeploymentSpec(
            name=name,
            version=version,
            package=str(package),
            manifest=decode_manifest((package / "model.toml").read_text()),
            batching=settings.pop("batching", BatchingSettings()),
            cache=settings.pop("cache", CacheSettings()),
            replicas=fit(ReplicaSettings(**{"count": 1, **settings}), 2),
            cores=2,
            trust_code=True,
            replica_dollars_per_hour=3600.0,
        )
        await self.plane.deploy(spec)
        self.route(**{name: version})
        return self.plane.deployments[-1]

    def route(self, **versions: str) -> None:
        routes = {name: Route((Target(version),)) for name, version in versions.items()}
        self.plane.route(RoutingTable({**self.plane.table.routes, **routes}))

    async def ask(self, *values: float, reference: str = "m", timeout_s: float | None = None) -> Response:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        request = Request({"x": np.array(values, np.float32)}, len(values), deadline=deadline)
        return await self.plane.infer(parse_reference(reference), request)

    async def answer(self, value: float, **fields) -> float:
        return float((await self.ask(value, **fields)).outputs["y"][0])

    def outcomes(self) -> list[str]:
        return [o.outcome for o in self.observations]


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that will happen, without saying when."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


@pytest.fixture
async def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    await bench.plane.close(grace_s=1.0)
