"""A model in service for a batch job, wherever that is: a plane of its own, what asks it, and its observations."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from foretell.app.config import ObservationSettings
from foretell.app.telemetry import Telemetry
from foretell.batch.generating import PromptScorer
from foretell.batch.prompts import PromptQuestion
from foretell.batch.question import RowQuestion, question_of
from foretell.batch.scoring import RowScorer, Scorer
from foretell.batch.source import Source
from foretell.batch.spec import JobSpec
from foretell.core.errors import ConfigError, PackageError
from foretell.core.observation import Observation
from foretell.core.reference import parse_reference
from foretell.fleet.launcher import Launcher, LocalProcess
from foretell.fleet.spec import MOST_REPLICAS
from foretell.plane.plane import Plane
from foretell.plane.spec import DeploymentSpec
from foretell.store.package import Package

SLOTS = 3
"""Requests under way for each replica: one runs, one is in its socket, one waits."""


@contextlib.asynccontextmanager
async def scoring(
    deployment: DeploymentSpec,
    spec: JobSpec,
    observations: ObservationSettings,
    source: Source,
    launch: Launcher = LocalProcess,
) -> AsyncIterator[Scorer]:
    """Load the model and give what asks it. `observations` as of a server, without an access log."""
    telemetry = Telemetry(ObservationSettings(access_log="", folder=observations.folder), tuple)
    books = _Books(telemetry)
    plane = Plane(launch, books.record)
    telemetry.start()
    try:
        await plane.deploy(deployment)
        schema = await asyncio.to_thread(lambda: source.schema)
        yield _scorer(plane, deployment, spec, question_of(spec, deployment.manifest, source, schema), books)
    finally:
        await plane.close(0.0)
        await asyncio.to_thread(telemetry.close)


@contextlib.asynccontextmanager
async def scoring_there(
    deployment: DeploymentSpec, spec: JobSpec, observations: ObservationSettings, source: Source, threads: int
) -> AsyncIterator[Scorer]:
    """As `scoring`, in a worker that may be on another machine: one replica with `threads`. Raises `ConfigError` where
    the package is not there, `PackageError` where it is another one.
    """
    here = socket.gethostname()
    if not Path(deployment.package).is_dir():
        raise ConfigError(
            f"{deployment.package} is not on {here}: the machines of a cluster need the store, the input and the output"
            " on a file system that all of them mount under the same path"
        )
    package = await asyncio.to_thread(Package.open, deployment.package)
    if package.digest != spec.digest:
        raise PackageError(f"{deployment.package} on {here} is another package than that of the job; fetch a good copy")
    replicas = msgspec.structs.replace(deployment.replicas, count=1, threads=threads)
    async with scoring(msgspec.structs.replace(deployment, replicas=replicas), spec, observations, source) as scorer:
        yield scorer


def _scorer(
    plane: Plane, deployment: DeploymentSpec, spec: JobSpec, question: RowQuestion | PromptQuestion, books: "_Books"
) -> Scorer:
    reference = parse_reference(spec.model)
    replicas = deployment.replicas.count or MOST_REPLICAS
    dollars_per_second = deployment.replica_dollars_per_hour / 3600.0
    if isinstance(question, PromptQuestion):
        slots = replicas * deployment.generation.slots
        return PromptScorer(plane, reference, question, slots, books.spent, dollars_per_second)
    return RowScorer(plane, reference, question, SLOTS * replicas, dollars_per_second)


class _Books(msgspec.Struct):
    """What generations cost, until their rows ask for it; every observation goes on to the telemetry."""

    telemetry: Telemetry
    bill: dict[str, float] = {}

    def record(self, observation: Observation) -> None:
        if observation.tokens is not None:
            self.bill[observation.request_id] = observation.cost_dollars
        self.telemetry.record(observation)

    def spent(self, request: str) -> float:
        return self.bill.pop(request, 0.0)
