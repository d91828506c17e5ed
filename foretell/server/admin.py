"""Routes for operators: health, metrics, what is deployed and how it is routed. Read-only."""

from collections.abc import Callable
from typing import Any

import msgspec

from foretell.plane.info import IndexEntry, ModelInfo, VersionStatistics
from foretell.server.door import Door
from foretell.server.http import Request, Response, json_response
from foretell.server.oip import Ready
from foretell.server.router import Route

Metrics = Callable[[], tuple[bytes, str]]
"""Returns the exposition and its content type."""


class DeploymentView(msgspec.Struct):
    """A served version and what it has done since it was loaded."""

    model: ModelInfo
    ready: bool
    statistics: VersionStatistics | None = None


class Admin:
    """Handlers for operators. `routing` returns the routing table as a value that JSON can hold."""

    def __init__(self, plane: Door, metrics: Metrics, routing: Callable[[], Any]) -> None:
        self._plane = plane
        self._metrics = metrics
        self._routing = routing

    async def healthz(self, request: Request) -> Response:
        ready = self._plane.ready()
        return json_response(Ready(ready), 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        body, content_type = self._metrics()
        return Response(body, 200, content_type.encode())

    async def deployments(self, request: Request) -> Response:
        statistics = {(s.name, s.version): s for s in self._plane.statistics()}
        entries = {(e.name, e.version): e.state == "READY" for e in self._plane.index()}
        views = [
            DeploymentView(m, entries.get((m.name, m.version), False), statistics.get((m.name, m.version)))
            for m in self._plane.models()
        ]
        return json_response(views)

    async def models(self, request: Request) -> Response:
        return json_response(self._plane.index())

    async def routing(self, request: Request) -> Response:
        return json_response(self._routing())

    def routes(self) -> list[Route]:
        tag = "Operation"
        return [
            Route("GET", "/healthz", self.healthz, "Can every model answer?", tag, None, Ready, (503,)),
            Route("GET", "/metrics", self.metrics, "Prometheus metrics", tag),
            Route("GET", "/admin/deployments", self.deployments, "Served versions", tag, None, list[DeploymentView]),
            Route("GET", "/admin/models", self.models, "Known models", tag, None, list[IndexEntry]),
            Route("GET", "/admin/routing", self.routing, "The routing table", tag, None, dict),
        ]
