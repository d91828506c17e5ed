"""The plane: the one door to all deployments. Entrances call it; it leaves one observation per request.

It routes, infers and reports. Which versions should be in service is decided above and told by `deploy`,
`route` and `retire`; clients' wishes to load and unload go to the `Repository` that was handed in.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator
from typing import Protocol

from foretell.core.errors import ForetellError, NotFound, Unsupported, did_you_mean
from foretell.core.generation import Event, GenerateRequest, Started
from foretell.core.reference import Reference
from foretell.core.request import Request, Response
from foretell.core.routing import RoutingTable
from foretell.core.tensor import Signature
from foretell.fleet.launcher import Launcher
from foretell.plane.account import Account
from foretell.plane.deployment import Deployment
from foretell.plane.info import IndexEntry, ModelInfo, VersionStatistics
from foretell.plane.observer import Observer, Record
from foretell.plane.spec import DeploymentSpec


class Repository(Protocol):
    """Where models come from when a client asks to load one."""

    async def load(self, reference: Reference) -> None: ...
    async def unload(self, name: str) -> None: ...
    def index(self) -> list[IndexEntry]:
        """Models that are known but not in service."""
        ...


class Plane:
    """`record` gets every observation; `sample_rate` is the share of them that carry inputs and outputs."""

    def __init__(self, launch: Launcher, record: Record, sample_rate: float = 0.0) -> None:
        self._launch = launch
        self._observer = Observer(record, sample_rate)
        self._deployments: dict[tuple[str, str], Deployment] = {}
        self._draining: set[asyncio.Task[None]] = set()
        self._table = RoutingTable({})
        self.repository: Repository | None = None

    # What is in service

    async def deploy(self, spec: DeploymentSpec) -> None:
        """Load a version beside those in service. It answers `name@version` at once, `name` once it is routed."""
        deployment = Deployment(spec, self._launch)
        await deployment.start()
        self._deployments[spec.name, spec.version] = deployment

    def route(self, table: RoutingTable) -> None:
        """Swap the routing table. Requests routed before finish where they are."""
        self._table = table

    def retire(self, name: str, version: str, grace_s: float = 30.0) -> "asyncio.Future[None]":
        """Take a version out of service. It drains on its own, whoever waits for the returned future or leaves."""
        deployment = self._deployments.pop((name, version))
        task = asyncio.get_running_loop().create_task(deployment.drain(grace_s))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)
        return asyncio.shield(task)

    async def close(self, grace_s: float = 30.0) -> None:
        """Drain everything."""
        for name, version in list(self._deployments):
            self.retire(name, version, grace_s)
        await asyncio.gather(*self._draining)

    @property
    def deployments(self) -> list[Deployment]:
        return list(self._deployments.values())

    @property
    def table(self) -> RoutingTable:
        return self._table

    # Requests

    async def infer(self, reference: Reference, request: Request) -> Response:
        """Answer one request. Raises a `ForetellError`; cancelling the caller cancels the request."""
        at = time.time()
        began = time.monotonic()
        deployment = None
        try:
            deployment = self._find(reference, request.sticky)
            request.rows = deployment.signature.check(request.inputs)
            answer = await deployment.infer(request)
        except ForetellError as error:
            self._observer.failed(deployment, request, at, began, error.outcome, error.message)
            raise
        except asyncio.CancelledError:
            self._observer.failed(deployment, request, at, began, "cancelled", "the client went away")
            raise
        self._observer.done(deployment, request, answer, at, began)
        return Response(answer.outputs, reference.name, deployment.spec.version, answer.timing, request.id)

    async def generate(self, reference: Reference, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Answer one request with token events, as they come. Raises a `ForetellError`, in mid-stream too; closing
        the generator or cancelling its caller cancels the request.
        """
        account = Account(self._observer, request)
        try:
            deployment = self._find(reference, request.sticky)
            account.routed(deployment)
            generation = deployment.generate(request)
            account.admitted(generation)
            while (event := await generation.next()) is not None:
                if isinstance(event, Started):
                    event.version = deployment.spec.version
                account.add(event)
                yield event
        except ForetellError as error:
            account.close(error.outcome, error.message)
            raise
        finally:
            account.close("cancelled", "the client went away")

    def refused(self, reference: Reference, error: ForetellError, protocol: str) -> None:
        """Observe a request that an entrance could not even read: it counts as rejected like any other."""
        deployment = None
        with contextlib.suppress(NotFound):
            deployment = self._find(reference)
        request = Request({}, 0, protocol=protocol)
        self._observer.failed(deployment, request, time.time(), time.monotonic(), error.outcome, error.message)

    def _find(self, reference: Reference, sticky: str = "") -> Deployment:
        name, selector = reference.name, reference.selector
        if not selector or reference.version is None:
            selector = self._table.find(name, selector).pick(sticky, random.random())
        deployment = self._deployments.get((name, selector))
        if deployment is None:
            raise self._unknown(name, selector)
        return deployment

    def _unknown(self, name: str, version: str) -> ForetellError:
        served = [v for n, v in self._deployments if n == name]
        if not served:
            known = {n for n, _ in self._deployments}
            return NotFound(f'no model "{name}" is served here. {did_you_mean(name, known)}')
        return NotFound(f'version {version} of "{name}" is not in service; in service: {", ".join(served)}')

    # What can be asked

    def signature(self, reference: Reference) -> Signature:
        """The signature of the version that a reference leads to; cheap enough for every request. Raises
        `NotFound`.
        """
        return self._find(reference).signature

    def describe(self, reference: Reference) -> ModelInfo:
        """Metadata of the version that a reference leads to. Raises `NotFound`."""
        deployment = self._find(reference)
        return deployment.info(self._versions(deployment.spec.name))

    def models(self) -> list[ModelInfo]:
        """Every version in service."""
        return [d.info(self._versions(d.spec.name)) for d in self._deployments.values()]

    def ready(self, reference: Reference | None = None) -> bool:
        """Whether a reference (or, without one, everything in service) can answer now."""
        if reference is None:
            return all(d.ready for d in self._deployments.values())
        try:
            return self._find(reference).ready
        except NotFound:
            return False

    def index(self) -> list[IndexEntry]:
        entries = [
            IndexEntry(name, version, "READY" if d.ready else "UNAVAILABLE", d.reason)
            for (name, version), d in self._deployments.items()
        ]
        return entries + (self.repository.index() if self.repository else [])

    def statistics(self, reference: Reference | None = None) -> list[VersionStatistics]:
        """Totals by version: of everything, or of the version a reference leads to."""
        if reference is None:
            return [d.snapshot() for d in self._deployments.values()]
        if not reference.selector:
            found = [d.snapshot() for (name, _), d in self._deployments.items() if name == reference.name]
            if found:
                return found
        return [self._find(reference).snapshot()]

    async def load(self, reference: Reference) -> None:
        """Put a model into service from the repository, or bring it up to date."""
        await self._the_repository().load(reference)

    async def unload(self, name: str) -> None:
        """Take every version of a model out of service."""
        await self._the_repository().unload(name)

    def _the_repository(self) -> Repository:
        if self.repository is None:
            raise Unsupported("this server has no model repository; restart it with other models")
        return self.repository

    def _versions(self, name: str) -> tuple[str, ...]:
        return tuple(sorted((v for n, v in self._deployments if n == name), key=_version_order))


def _version_order(version: str) -> tuple[int, str]:
    return (int(version), "") if version.isdigit() else (0, version)
