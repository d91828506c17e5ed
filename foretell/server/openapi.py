"""The OpenAPI 3.1 document, generated from the route table, and the page that shows it. Knows no handler."""

import re
from importlib.resources import files
from typing import Any

import msgspec

from foretell.server.convert import InferDocument
from foretell.server.http import Request, Response
from foretell.server.oip_generate import GenerateDocument
from foretell.server.openai_batches import BatchDocument
from foretell.server.openai_chat import ChatDocument
from foretell.server.openai_completions import CompletionDocument
from foretell.server.openai_embeddings import EmbeddingsDocument
from foretell.server.openai_files import FileDocument
from foretell.server.router import Route


class Error(msgspec.Struct):
    """What went wrong, where, and what to do about it."""

    error: str | dict[str, Any]


_INFER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [5.1, 3.5, 1.4, 0.2]}]}
_EXAMPLES: dict[object, Any] = {
    InferDocument: _INFER,
    EmbeddingsDocument: {"model": "minilm", "input": ["How far is the moon?"]},
    ChatDocument: {"model": "smollm2", "messages": [{"role": "user", "content": "How far is the moon?"}]},
    CompletionDocument: {"model": "smollm2", "prompt": "The moon is", "max_tokens": 16},
    GenerateDocument: {"text_input": "The moon is", "max_tokens": 16},
    FileDocument: {"purpose": "batch", "file": "{}"},
    BatchDocument: {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
}
_STREAMED = (ChatDocument, CompletionDocument, GenerateDocument)
_PATTERNS = {
    "model": "^[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9._-]*)?$",
    "version": "^[0-9]+$",
    "file": "^[A-Za-z0-9-]+$",
    "batch": "^[A-Za-z0-9_]+$",
}
_REASONS = {
    400: "Malformed, or not what the model expects",
    403: "Would run code the operator does not trust, or is asked by another site's page",
    404: "No such model, version or route",
    405: "Not with this method",
    409: "Somebody else changed it first",
    413: "Body over the limit",
    415: "Unknown Content-Encoding",
    426: "Not a WebSocket handshake",
    429: "Overloaded; retry after Retry-After seconds",
    500: "The model failed",
    501: "Not offered by this server",
    503: "Not ready",
    504: "The deadline passed",
}


class Docs:
    """/openapi.json and /docs. The document is made once."""

    def __init__(self, routes: list[Route], version: str) -> None:
        self._document = msgspec.json.encode(document(routes, version))
        self._page = files("foretell.server").joinpath("docs.html").read_bytes()

    async def openapi(self, request: Request) -> Response:
        return Response(self._document)

    async def page(self, request: Request) -> Response:
        return Response(self._page, 200, b"text/html; charset=utf-8")

    def routes(self) -> list[Route]:
        return [Route("GET", "/openapi.json", self.openapi), Route("GET", "/docs", self.page)]


def document(routes: list[Route], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a route table, as a value that JSON can hold."""
    types = [t for route in routes for t in (route.takes, route.gives) if t is not None]
    schemas, components = msgspec.json.schema_components([*types, Error], ref_template="#/components/schemas/{name}")
    schema_of = {repr(t): s for t, s in zip([*types, Error], schemas, strict=True)}
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "foretell",
            "version": version,
            "description": "Open Inference Protocol v2 and friends.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", route.template)
    gives = {"application/json": {"schema": schema_of[repr(route.gives)]}} if route.gives else {"text/plain": {}}
    if route.takes is InferDocument:
        gives["application/octet-stream"] = {}
    if route.takes in _STREAMED:
        gives["text/event-stream"] = {}
    error = {"application/json": {"schema": schema_of[repr(Error)]}}
    responses: dict[str, Any] = {"200": {"description": "Done", "content": gives}}
    for status in route.statuses:
        content = gives if status == 503 and route.takes is None else error
        responses[str(status)] = {"description": _REASONS[status], "content": content}
        if status == 503 and route.takes is None and len(names):
            responses["503"]["content"] = {"application/json": {"schema": {}}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "tags": [route.tag],
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.template}").rstrip("_"),
        "parameters": [
            {"name": n, "in": "path", "required": True, "schema": {"type": "string", "pattern": _PATTERNS[n]}}
            for n in names
        ],
        "responses": responses,
    }
    if route.takes is not None:
        body: dict[str, Any] = {"schema": schema_of[repr(route.takes)]}
        if route.takes in _EXAMPLES:
            body["example"] = _EXAMPLES[route.takes]
        kind = "multipart/form-data" if route.takes is FileDocument else "application/json"
        required = route.takes in _EXAMPLES
        operation["requestBody"] = {"required": required, "content": {kind: body}}
    return operation
