"""Keeps a plane in step with a store: the versions that the served references lead to, and no others."""

import asyncio
import logging
import time
from collections.abc import Iterable

from foretell.app.config import Config
from foretell.app.deployments import deployment_spec, generation_settings, with_draft
from foretell.core.errors import ConfigError, Conflict, ForetellError, NotFound, did_you_mean
from foretell.core.reference import Reference
from foretell.core.routing import Route, RoutingTable, Target
from foretell.plane.info import IndexEntry
from foretell.plane.plane import Plane
from foretell.store.package import Package
from foretell.store.store import Store

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""How long after a failure to load what is wanted it is tried again."""


class Catalog:
    """The plane's `Repository`. `sync` after every change of the store; `watch` does so by itself.

    `fixed` are packages that are served without being in the store (a file named on the command line).
    """

    def __init__(
        self, plane: Plane, store: Store, config: Config, wanted: Iterable[Reference], fixed: dict[str, Package]
    ) -> None:
        unknown = set(config.models) - {r.name for r in wanted} - set(fixed)
        if unknown:
            known = {r.name for r in wanted} | set(fixed)
            name = sorted(unknown)[0]
            raise ConfigError(f"models.{name}: no model of that name is served. {did_you_mean(name, known)}")
        self._plane = plane
        self._store = store
        self._config = config
        self._wanted = list(dict.fromkeys(wanted))
        self._fixed = fixed
        self._failures: dict[tuple[str, str], str] = {}
        self._known: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._token: object = None
        self._retry_at = 0.0

    async def load(self, reference: Reference) -> None:
        """Serve a reference from now on. Raises why it cannot be loaded; then it is not wanted any more."""
        async with self._lock:
            if reference.name in self._fixed:
                if not reference.selector:
                    return
                raise Conflict(f'"{reference.name}" is a file given when the server started, not a model of the store')
            added = reference not in self._wanted
            if added:
                self._wanted.append(reference)
            try:
                await self._sync([reference])
            except BaseException:
                if added:
                    self._wanted.remove(reference)
                    self._failures.pop((reference.name, reference.selector), None)
                raise

    async def unload(self, name: str) -> None:
        """Stop serving every version of a name."""
        async with self._lock:
            if name not in {r.name for r in self._wanted} | set(self._fixed):
                raise NotFound(f'"{name}" is not in service. {did_you_mean(name, {r.name for r in self._wanted})}')
            self._wanted = [r for r in self._wanted if r.name != name]
            self._fixed.pop(name, None)
            await self._sync([])

    def index(self) -> list[IndexEntry]:
        """What could not be loaded, and what the store holds beside what is in service."""
        served = {(d.spec.name, d.spec.version) for d in self._plane.deployments}
        entries = [IndexEntry(n, v, "UNAVAILABLE", reason) for (n, v), reason in self._failures.items()]
        names = {name for name, _ in served} | {entry.name for entry in entries}
        idle = [
            IndexEntry(name, version, "UNAVAILABLE", "not loaded")
            for name, version in self._known.items()
            if name not in names
        ]
        return entries + idle

    async def start(self) -> None:
        """Load everything that is wanted. Raises the first failure: a server that starts is complete."""
        async with self._lock:
            await self._sync(self._wanted)

    async def watch(self, poll_s: float) -> None:
        """Follow the store until cancelled. A version that cannot be loaded leaves the old one in service."""
        while True:
            await asyncio.sleep(poll_s)
            try:
                again = bool(self._failures) and time.monotonic() >= self._retry_at
                if again or await asyncio.to_thread(self._store.change_token) != self._token:
                    async with self._lock:
                        await self._sync([])
            except Exception:
                log.exception("the store could not be read; serving goes on with what is loaded")

    async def _sync(self, must: Iterable[Reference]) -> None:
        """Make the plane serve what is wanted. Failures of references in `must` are raised, others recorded."""
        must = set(must)
        token = await asyncio.to_thread(self._store.change_token)
        self._failures.clear()
        targets: dict[Reference, str] = {}
        refused: Exception | None = None
        for reference in self._wanted:
            try:
                targets[reference] = await self._deployed(reference)
            except Exception as error:  # a store that cannot be read must not hold up the other models
                self._note(reference, error)
                refused = error if reference in must and refused is None else refused
        for name in self._fixed:
            await self._deploy(name, "1", self._fixed[name])
        keep = {(r.name, v) for r, v in targets.items()} | {(name, "1") for name in self._fixed}
        keep |= self._routed({r for r in self._wanted if r not in targets})
        self._plane.route(self._table(targets))
        stale = [d.spec for d in self._plane.deployments if (d.spec.name, d.spec.version) not in keep]
        grace_s = self._config.server.grace_s
        for spec in stale:
            log.info("%s@%s: out of service", spec.name, spec.version)
            self._plane.retire(spec.name, spec.version, grace_s)  # drains by itself: a slow request delays no swap
        self._known = await asyncio.to_thread(self._newest)
        self._token, self._retry_at = token, time.monotonic() + RETRY_S
        if refused is not None:
            raise refused

    async def _deployed(self, reference: Reference) -> str:
        """The version a reference leads to, in service."""
        info = await asyncio.to_thread(self._store.resolve, reference)
        version = str(info.number)
        if (info.name, version) not in self._in_service():
            package = await asyncio.to_thread(self._store.fetch, info)
            await self._deploy(info.name, version, package)
        return version

    async def _deploy(self, name: str, version: str, package: Package) -> None:
        if (name, version) in self._in_service():
            return
        settings = generation_settings(name, package, self._config)
        generation = await asyncio.to_thread(with_draft, settings, self._store)
        spec = deployment_spec(name, version, package, self._config, generation)
        await self._plane.deploy(spec)
        log.info("%s@%s: in service", name, version)

    def _note(self, reference: Reference, error: Exception) -> None:
        reason = error.message if isinstance(error, ForetellError) else f"{type(error).__name__}: {error}"
        log.error("%s: %s; what was in service stays", reference, reason)
        self._failures[reference.name, reference.selector] = reason

    def _in_service(self) -> set[tuple[str, str]]:
        return {(d.spec.name, d.spec.version) for d in self._plane.deployments}

    def _routed(self, references: set[Reference]) -> set[tuple[str, str]]:
        """The versions that references which cannot be brought up to date lead to now."""
        routes = self._plane.table.routes
        return {
            (r.name, target.version)
            for r in references
            if (route := routes.get(str(r)) or routes.get(r.name)) is not None
            for target in route.targets
        }

    def _table(self, targets: dict[Reference, str]) -> RoutingTable:
        """Routes by alias and by name; a plain name leads where the plain reference or, without one, the first
        reference of that name leads. Routes of references that failed are kept.
        """
        routes = {str(r): route for r in self._wanted if (route := self._plane.table.routes.get(str(r)))}
        for reference, version in sorted(targets.items(), key=lambda item: bool(item[0].selector)):
            route = Route((Target(version),))
            routes[str(reference)] = route
            if reference.selector:
                routes.setdefault(reference.name, route)
        routes |= {name: Route((Target("1"),)) for name in self._fixed}
        return RoutingTable(routes)

    def _newest(self) -> dict[str, str]:
        return {name: str(self._store.versions(name)[-1].number) for name in self._store.names()}
