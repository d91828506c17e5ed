"""The gRPC entrance: one grpc.aio server in the running loop that carries the methods of `grpc_service` and the
standard health service. Owns calls, deadlines, status codes and limits; knows no tensors.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import msgspec

from foretell.core.errors import ConfigError, ForetellError, NotFound, Overloaded, Unsupported
from foretell.core.reference import parse_reference
from foretell.server import health_pb2, oip_pb2
from foretell.server.grpc_service import SERVICE, InferenceService, Message, Plane, explain

HEALTH_SERVICE = "grpc.health.v1.Health"
_WATCH_EVERY_S = 0.5
_UNSERVED = {
    "SystemSharedMemory": "shared memory is not served; send tensors in the message",
    "CudaSharedMemory": "shared memory is not served; send tensors in the message",
    "TraceSetting": "tracing cannot be set here; observations and /metrics tell where time goes",
    "LogSettings": "logging cannot be set here; use foretell.toml",
}

Answer = Callable[[Message, grpc.aio.ServicerContext], Awaitable[Message]]


class GrpcSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of the gRPC entrance. `max_body_bytes` bounds one message (answers are not bounded);
    `stream_window` is how many requests of one stream run at a time; `max_connection_streams` how many calls
    one connection may have open.
    """

    max_body_bytes: int = 64 * 2**20
    stream_window: int = 16
    max_connection_streams: int = 1024


class GrpcServer:
    """A gRPC server on the running loop. `start`, then `drain`; not reusable. `version` is the product's."""

    def __init__(self, plane: Plane, settings: GrpcSettings, version: str = "") -> None:
        self._plane = plane
        self._settings = settings
        self._service = InferenceService(plane, version, settings.stream_window)
        self._server: grpc.aio.Server | None = None
        self._draining = asyncio.Event()

    async def start(self, host: str, port: int) -> int:
        """Listen and return the bound port (for port 0: the one the system chose). Raises `ConfigError` if
        the address cannot be had.
        """
        server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self._settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", self._settings.max_connection_streams),
            )
        )
        server.add_generic_rpc_handlers((_Methods(self._service), self._health()))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = int(server.add_insecure_port(address))
        except RuntimeError:
            bound = 0
        if not bound:
            raise ConfigError(
                f"gRPC cannot listen on port {port} of {host}: it is in use, or the host is not this machine's."
                " Choose another with --grpc-port (0 picks a free one)"
            )
        await server.start()
        self._server = server
        return bound

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls, let those in flight finish for up to `grace_s` seconds, then cancel them."""
        self._draining.set()
        if self._server is not None:
            await self._server.stop(grace_s)

    def _health(self) -> grpc.GenericRpcHandler:
        check = grpc.unary_unary_rpc_method_handler(
            _answering(self._check),
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
        watch = grpc.unary_stream_rpc_method_handler(
            self._watch,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, {"Check": check, "Watch": watch})

    async def _check(self, message: Message, deadline: float | None) -> Message:
        return health_pb2.HealthCheckResponse(status=self._status(message.service))

    async def _watch(self, message: Message, context: grpc.aio.ServicerContext) -> AsyncIterator[Message]:
        last = None
        while not self._draining.is_set():
            try:
                status = self._status(message.service)
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
        """A health status. `service` is empty, the inference service, or a model; else raises `NotFound`."""
        whole = service in ("", SERVICE, HEALTH_SERVICE)
        ready = self._plane.ready(None if whole else parse_reference(service))
        serving = ready and not self._draining.is_set()
        names = health_pb2.HealthCheckResponse
        return names.SERVING if serving else names.NOT_SERVING


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a method path; made once, asked once a call."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._handlers = {
            f"/{SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(
                _answering(method.answer),
                request_deserializer=method.request.FromString,
                response_serializer=_serialized,
            )
            for name, method in service.methods().items()
        }
        self._handlers[f"/{SERVICE}/ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=oip_pb2.ModelInferRequest.FromString,
            response_serializer=oip_pb2.ModelStreamInferResponse.SerializeToString,
        )

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        handler = self._handlers.get(call.method)
        if handler is not None:
            return handler
        service, _, name = call.method.lstrip("/").partition("/")
        for prefix, reason in _UNSERVED.items():
            if service == SERVICE and name.startswith(prefix):
                return grpc.unary_unary_rpc_method_handler(_answering(_refusal(f"{name}: {reason}")))
        return None

    async def _stream(
        self, messages: AsyncIterator[Message], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Message]:
        async for answer in self._service.stream(messages, _deadline(context)):
            yield answer


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()  # type: ignore[no-any-return]


def _answering(answer: Callable[[Message, float | None], Awaitable[Message]]) -> Answer:
    """`answer` as a handler of calls: deadline in, errors out as status codes."""

    async def handle(message: Message, context: grpc.aio.ServicerContext) -> Message:
        try:
            return await answer(message, _deadline(context))
        except Exception as error:
            await _abort(context, explain(error))

    return handle


def _deadline(context: grpc.aio.ServicerContext) -> float | None:
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left


async def _abort(context: grpc.aio.ServicerContext, error: ForetellError) -> None:
    """End the call with the error's status code; an overload tells when to come back in trailing metadata."""
    trailing: tuple[tuple[str, str], ...] = ()
    if isinstance(error, Overloaded):
        trailing = (
            ("retry-after", str(max(1, math.ceil(error.retry_after_s)))),
            ("grpc-retry-pushback-ms", str(max(1, round(error.retry_after_s * 1000)))),
        )
    await context.abort(grpc.StatusCode[error.grpc_code], error.message, trailing)


def _refusal(reason: str) -> Callable[[Message, float | None], Awaitable[Message]]:
    async def refuse(message: Message, deadline: float | None) -> Message:
        raise Unsupported(reason)

    return refuse
