"""The plain twin of the lean gRPC transport: the same routes carried by grpcio's own asyncio server.

Tests hold both to the same promises, and measurements compare them; the product itself needs no grpcio.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import grpc

from foretell.core.errors import ForetellError
from foretell.server.grpc_method import Message, Method, Routes, StreamMethod, explain
from foretell.server.grpc_status import GrpcSettings, trailing_metadata

Answer = Callable[[Message, grpc.aio.ServicerContext], Awaitable[Message]]
StreamAnswer = Callable[[AsyncIterator[Message], grpc.aio.ServicerContext], AsyncIterator[Message]]


class GrpcioTransport:
    """Carries `routes` on a grpc.aio server in the running loop."""

    def __init__(self, routes: Routes, settings: GrpcSettings) -> None:
        self._routes = routes
        self._settings = settings
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the bound port. Raises `OSError` if the address cannot be had."""
        server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self._settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", self._settings.max_connection_streams),
            )
        )
        server.add_generic_rpc_handlers((_Handlers(self._routes),))
        try:
            bound = int(server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))
        except RuntimeError as error:
            raise OSError(str(error)) from None
        if not bound:
            raise OSError("grpcio could not bind")
        await server.start()
        self._server = server
        return bound

    async def drain(self, grace_s: float) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a method path; made once, asked once a call."""

    def __init__(self, routes: Routes) -> None:
        self._handlers = {path: _handler(method) for path, method in routes.items()}

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._handlers.get(call.method)


def _handler(method: Method | StreamMethod) -> grpc.RpcMethodHandler:
    read = method.request.FromString
    if isinstance(method, Method):
        return grpc.unary_unary_rpc_method_handler(_unary(method), read, _serialized)
    return grpc.stream_stream_rpc_method_handler(_streaming(method), read, _serialized)


def _unary(method: Method) -> Answer:
    async def handle(message: Message, context: grpc.aio.ServicerContext) -> Message:
        try:
            return await method.answer(message, _deadline(context))
        except Exception as error:
            await _abort(context, explain(error))

    return handle


def _streaming(method: StreamMethod) -> StreamAnswer:
    async def handle(messages: AsyncIterator[Message], context: grpc.aio.ServicerContext) -> AsyncIterator[Message]:
        try:
            async with aclosing(method.answer(messages, _deadline(context))) as answers:
                async for answer in answers:
                    yield answer
        except Exception as error:
            await _abort(context, explain(error))

    return handle


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()  # type: ignore[no-any-return]


def _deadline(context: grpc.aio.ServicerContext) -> float | None:
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left


async def _abort(context: grpc.aio.ServicerContext, error: ForetellError) -> None:
    await context.abort(grpc.StatusCode[error.grpc_code], error.message, trailing_metadata(error))
