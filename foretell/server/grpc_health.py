"""The standard gRPC health service: whether the server, or one model, can answer now."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from foretell.core.errors import InvalidInput, NotFound
from foretell.core.reference import parse_reference
from foretell.server import health_pb2
from foretell.server.door import Door
from foretell.server.grpc_method import Message, Method, Routes, StreamMethod
from foretell.server.grpc_service import SERVICE

HEALTH_SERVICE = "grpc.health.v1.Health"
_WATCH_EVERY_S = 0.5


class HealthService:
    """Answers Check and Watch from `plane.ready`; after `drain` everything is not serving."""

    def __init__(self, plane: Door) -> None:
        self._plane = plane
        self._draining = asyncio.Event()

    def routes(self) -> Routes:
        return {
            f"/{HEALTH_SERVICE}/Check": Method(health_pb2.HealthCheckRequest, self._check),
            f"/{HEALTH_SERVICE}/Watch": StreamMethod(health_pb2.HealthCheckRequest, self._watch),
        }

    def drain(self) -> None:
        self._draining.set()

    async def _check(self, message: Message, deadline: float | None) -> Message:
        return health_pb2.HealthCheckResponse(status=self._status(message.service))

    async def _watch(self, messages: AsyncIterator[Message], deadline: float | None) -> AsyncGenerator[Message, None]:
        service = ""
        async for message in messages:
            service = message.service
            break
        last = None
        while not self._draining.is_set():
            try:
                status = self._status(service)
            except NotFound:
                status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            try:
                await asyncio.wait_for(self._draining.wait(), _WATCH_EVERY_S)
            except TimeoutError:
                pass
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        """`service` is empty, a service's name, or a model's reference. Raises `NotFound` for anything else."""
        whole = service in ("", SERVICE, HEALTH_SERVICE)
        try:
            ready = self._plane.ready(None if whole else parse_reference(service))
        except InvalidInput:
            raise NotFound(f'"{service}" is neither a service nor a model here') from None
        serving = ready and not self._draining.is_set()
        names = health_pb2.HealthCheckResponse
        return names.SERVING if serving else names.NOT_SERVING
