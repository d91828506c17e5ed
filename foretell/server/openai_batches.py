"""OpenAI's batches: /v1/batches, files of calls that are answered while there is time. Knows the shapes, not who runs
them.
"""

import re
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from foretell.core.errors import InvalidInput, NotFound, did_you_mean
from foretell.server.http import Request, Response, json_response
from foretell.server.openai_files import one_page
from foretell.server.openai_shape import read_document
from foretell.server.router import Route

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
"""What calls may be made of."""

_WINDOW = re.compile(r"([1-9]\d{0,4})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_USUAL, _MOST = 20, 100
_STATUSES = (400, 404, 405, 409, 413, 415, 500, 503)


class BatchDocument(msgspec.Struct):
    """input_file_id: of an uploaded file with a call a line. endpoint: that of all its calls. completion_window: 24h,
    or another number of s, m, h, d. metadata: up to 16 texts.
    """

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Annotated[dict[str, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)] | None = None


class BatchAsked(msgspec.Struct, frozen=True):
    """A batch that can be made: what the document says, and its window in seconds."""

    file: str
    endpoint: str
    window: str
    window_s: float
    metadata: dict[str, str]


class BatchFault(msgspec.Struct):
    code: str
    message: str
    line: int | None
    param: str | None


class BatchFaults(msgspec.Struct):
    data: list[BatchFault]
    object: str = "list"


class RequestCounts(msgspec.Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchObject(msgspec.Struct, kw_only=True):
    """`status`: validating, in_progress, finalizing, completed, failed, expired, cancelling, cancelled. Times are in
    Unix seconds.
    """

    id: str
    object: str = "batch"
    endpoint: str
    model: str | None
    errors: BatchFaults | None = None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None


class BatchList(msgspec.Struct):
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class BatchJobs(Protocol):
    """Runs batches. `get` and `cancel` raise `NotFound`."""

    async def create(self, asked: BatchAsked) -> BatchObject:
        """Raises `NotFound` or `InvalidInput` where the file is none for this."""

    async def get(self, name: str) -> BatchObject: ...
    async def all(self) -> list[BatchObject]:
        """Newest first."""

    async def cancel(self, name: str) -> BatchObject:
        """Raises `Conflict` where it is over."""


class NoBatches:
    """The null twin: nothing can be run."""

    async def create(self, asked: BatchAsked) -> BatchObject:
        raise NotFound(f'no file "{asked.file}"; this server keeps none')

    async def get(self, name: str) -> BatchObject:
        raise NotFound(f'no batch "{name}"; this server runs none')

    async def all(self) -> list[BatchObject]:
        return []

    async def cancel(self, name: str) -> BatchObject:
        return await self.get(name)


class BatchesApi:
    """The handlers, over whoever runs batches."""

    def __init__(self, batches: BatchJobs) -> None:
        self._batches = batches

    async def create(self, request: Request) -> Response:
        document = read_document(request, BatchDocument)
        if document.endpoint not in ENDPOINTS:
            raise InvalidInput(
                f'endpoint is "{document.endpoint}" (at $.endpoint). {did_you_mean(document.endpoint, ENDPOINTS)}'
            )
        window = _WINDOW.fullmatch(document.completion_window)
        if window is None:
            raise InvalidInput(
                f'completion_window is "{document.completion_window}"; write "24h", or another number of s, m, h or d'
                " (at $.completion_window)"
            )
        window_s = float(int(window[1]) * _SECONDS[window[2]])
        asked = BatchAsked(
            document.input_file_id, document.endpoint, document.completion_window, window_s, document.metadata or {}
        )
        return json_response(await self._batches.create(asked))

    async def page(self, request: Request) -> Response:
        found = await self._batches.all()
        data, more = one_page(found, request.query, [each.id for each in found], _USUAL, _MOST)
        return json_response(BatchList(data, data[0].id if data else None, data[-1].id if data else None, more))

    async def get(self, request: Request) -> Response:
        return json_response(await self._batches.get(request.params["batch"]))

    async def cancel(self, request: Request) -> Response:
        return json_response(await self._batches.cancel(request.params["batch"]))

    def routes(self) -> list[Route]:
        tag = "OpenAI"
        return [
            Route("POST", "/v1/batches", self.create, "Answer a file of calls", tag, BatchDocument, BatchObject,
                  _STATUSES),
            Route("GET", "/v1/batches", self.page, "Batches", tag, None, BatchList, (400, 500)),
            Route("GET", "/v1/batches/{batch}", self.get, "One batch", tag, None, BatchObject, (404, 500)),
            Route("POST", "/v1/batches/{batch}/cancel", self.cancel, "End it", tag, None, BatchObject,
                  (404, 409, 500)),
        ]  # fmt: skip
