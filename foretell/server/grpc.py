"""The gRPC entrance: the inference and health services on a transport. Knows neither tensors nor frames."""

from collections.abc import Callable
from typing import Protocol

from foretell.core.errors import ConfigError
from foretell.server.door import Door
from foretell.server.grpc_health import HealthService
from foretell.server.grpc_lean import LeanTransport
from foretell.server.grpc_method import Routes
from foretell.server.grpc_service import InferenceService
from foretell.server.grpc_status import GrpcSettings

__all__ = ["GrpcServer", "GrpcSettings"]


class Transport(Protocol):
    """Carries calls between a socket and routes."""

    async def start(self, host: str, port: int) -> int: ...
    async def drain(self, grace_s: float) -> None: ...


class GrpcServer:
    """A gRPC server on the running loop. `start`, then `drain`; not reusable. `version` is the product's.

    `transport` makes what carries the calls: our own HTTP/2, or its plain twin `grpc_aio.GrpcioTransport`.
    """

    def __init__(
        self,
        plane: Door,
        settings: GrpcSettings,
        version: str = "",
        transport: Callable[[Routes, GrpcSettings], Transport] = LeanTransport,
    ) -> None:
        self._health = HealthService(plane)
        routes = {
            **InferenceService(plane, version, settings.stream_window).routes(),
            **self._health.routes(),
        }
        self._transport = transport(routes, settings)

    async def start(self, host: str, port: int) -> int:
        """Listen and return the bound port (for port 0: the one the system chose). Raises `ConfigError` if
        the address cannot be had.
        """
        try:
            return await self._transport.start(host, port)
        except OSError as error:
            raise ConfigError(
                f"gRPC cannot listen on port {port} of {host}: {error.strerror or error}."
                " Choose another with --grpc-port (0 picks a free one)"
            ) from None

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls, let those in flight finish for up to `grace_s` seconds, then cancel them."""
        self._health.drain()
        await self._transport.drain(grace_s)
