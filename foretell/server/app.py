"""The HTTP entrance put together: route tables over one plane, errors in each API's own shape, a server."""

import ssl
from collections.abc import Callable
from typing import Any

from foretell.core.routing import RoutingTable
from foretell.server.admin import Admin, Metrics
from foretell.server.door import Door
from foretell.server.http import (
    HttpSettings,
    Request,
    Response,
    explain,
    headers_of,
    json_response,
    status_of,
)
from foretell.server.listener import HttpServer
from foretell.server.oip import OpenInference
from foretell.server.oip_generate import GenerateApi
from foretell.server.openai import OpenAi
from foretell.server.openai_batches import BatchesApi, BatchJobs, NoBatches
from foretell.server.openai_files import FilesApi, FileStore, NoFiles
from foretell.server.openai_shape import error_response
from foretell.server.openapi import Docs
from foretell.server.router import Router
from foretell.server.row_stream import RowStreams


def no_metrics() -> tuple[bytes, str]:
    """The null twin of telemetry's exposition."""
    return b"", "text/plain; version=0.0.4; charset=utf-8"


class App:
    """All routes of the HTTP entrance. Implements `HttpApp`.

    `metrics` makes the Prometheus exposition; `routing` returns the table to show at /admin/routing. Without `files`
    and `batches` there are none.
    """

    def __init__(
        self,
        plane: Door,
        metrics: Metrics = no_metrics,
        routing: Callable[[], Any] = lambda: RoutingTable({}),
        version: str = "0",
        files: FileStore | None = None,
        batches: BatchJobs | None = None,
    ) -> None:
        routes = [*OpenInference(plane, version).routes(), *GenerateApi(plane).routes(), *OpenAi(plane).routes()]
        routes += RowStreams(plane).routes()
        routes += FilesApi(files or NoFiles()).routes() + BatchesApi(batches or NoBatches()).routes()
        routes += Admin(plane, metrics, routing).routes()
        self.router = Router([*routes, *Docs(routes, version).routes()])
        self.find = self.router.find

    def refusal(self, request: Request | None, error: Exception) -> Response:
        """The answer that tells about an error, in the shape of the API that was asked."""
        told = explain(error)
        if request is not None and request.target.startswith(b"/v1/"):
            return error_response(told)
        return json_response({"error": told.message}, status_of(told), headers_of(told))


async def serve_http(
    app: App,
    host: str = "127.0.0.1",
    port: int = 8080,
    settings: HttpSettings | None = None,
    tls: ssl.SSLContext | None = None,
) -> HttpServer:
    """Start serving on the running loop. Port 0 picks a free one (`HttpServer.port`). End with `drain(grace_s)`.

    Raises `ConfigError` if the port cannot be had.
    """
    server = HttpServer(app, settings or HttpSettings())
    await server.start(host, port, tls)
    return server
