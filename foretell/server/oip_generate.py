"""Triton's generate extension over HTTP: /v2/models/{model}/generate and /generate_stream.

Owns the document that says what to generate, which gRPC's streams share.
"""

import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from foretell.core.errors import ForetellError, InvalidInput, did_you_mean
from foretell.core.generation import Event, GenerateRequest, Piece, Started
from foretell.core.reference import Reference
from foretell.server.door import Inference
from foretell.server.generation import GenerationFields, Text, collect, grammar_of, places_of, sampling_of, stops_of
from foretell.server.http import Body, Request, Response, json_response
from foretell.server.oip import INFER_STATUSES, reference_of
from foretell.server.router import Route
from foretell.server.sse import encode, event, streamed

_SILENT = ("content_type", "triton_enable_empty_final_response", "binary_data_output")


class GenerateDocument(GenerationFields, kw_only=True):
    """text_input: the prompt. stream: whether the text comes in pieces. exclude_input_in_output: false repeats the
    prompt first. timeout: microseconds. sticky: keeps a caller on one version. Fields may also stand in `parameters`,
    or in `sampling_parameters`, which may be JSON in a string.
    """

    text_input: Text
    id: str = ""
    stream: bool | None = None
    exclude_input_in_output: bool | None = None
    timeout: Annotated[int, Meta(ge=0)] | None = None
    sticky: str | None = None
    parameters: dict[str, Any] | None = None
    sampling_parameters: dict[str, Any] | str | None = None


class GenerateAnswer(msgspec.Struct, omit_defaults=True):
    """With generate_stream, server-sent events of this shape, each with the next piece of text."""

    model_name: str
    model_version: str
    text_output: str
    id: str = ""


_NESTS = ("sampling_parameters", "parameters")
_FIELDS = [name for name in GenerateDocument.__struct_fields__ if name not in _NESTS]


def document_of(fields: dict[str, Any]) -> GenerateDocument:
    """The document of `fields` and those nested in them. Raises `InvalidInput` with the JSON path."""
    together: dict[str, Any] = {}
    for nest in _NESTS:
        inner = fields.get(nest) or {}
        if isinstance(inner, str):
            inner = _json_object(inner.encode(), f" (at $.{nest})")
        if not isinstance(inner, dict):
            raise InvalidInput(f"{nest} is no object (at $.{nest})")
        together.update(_known(inner, f"$.{nest}"))
    together.update(_known({name: value for name, value in fields.items() if name not in _NESTS}, "$"))
    try:
        return msgspec.convert(together, GenerateDocument, str_keys=True)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the request does not fit generate: {error}") from None


def _known(fields: dict[str, Any], place: str) -> dict[str, Any]:
    """`fields` without those that mean nothing here; one that nobody knows is refused."""
    for name in fields:
        if name not in _FIELDS and name not in _SILENT:
            raise InvalidInput(f'unknown field "{name}" (at {place}.{name}). {did_you_mean(name, _FIELDS)}')
    return {name: value for name, value in fields.items() if name not in _SILENT}


def request_of(document: GenerateDocument, protocol: str) -> GenerateRequest:
    """The generation that a document asks for."""
    return GenerateRequest(
        document.text_input,
        sampling_of(document),
        stops_of(document, document.max_tokens),
        grammar_of(document),
        echo=document.exclude_input_in_output is False,
        id=document.id,
        priority=document.priority or 0,
        deadline=time.monotonic() + document.timeout / 1e6 if document.timeout else None,
        protocol=protocol,
        sticky=document.sticky or document.user or "",
        places=places_of(document),
    )


class GenerateApi:
    """Handlers of the extension over one plane."""

    def __init__(self, plane: Inference) -> None:
        self._plane = plane

    async def generate(self, request: Request) -> Response:
        reference, document, asked = self._read(request)
        if document.stream:
            raise InvalidInput("generate answers once; ask generate_stream for the pieces (at $.stream)")
        (choice,), totals = await collect(self._plane.generate(reference, asked), 1)
        return json_response(GenerateAnswer(reference.name, totals.version, choice.text, document.id))

    async def generate_stream(self, request: Request) -> Response:
        reference, document, asked = self._read(request)
        whole = document.stream is not None and not document.stream
        return await streamed(
            self._plane.generate(reference, asked), GenerateWriter(reference.name, document.id, whole)
        )

    def _read(self, request: Request) -> tuple[Reference, GenerateDocument, GenerateRequest]:
        reference = reference_of(request.params["model"], request.params.get("version", ""))
        try:
            document = document_of(_json_object(request.body))
            asked = request_of(document, "rest")
        except ForetellError as error:
            self._plane.refused(reference, error, "rest")
            raise
        if not asked.id:
            asked.id = request.header(b"x-request-id")[:128].decode("latin-1")
        return reference, document, asked

    def routes(self) -> list[Route]:
        """The route table; each route also comes with /versions/{version}."""
        tag = "Open Inference Protocol"
        routes = []
        for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route("POST", base + "/generate", self.generate, "Generate text", tag, GenerateDocument,
                      GenerateAnswer, INFER_STATUSES),
                Route("POST", base + "/generate_stream", self.generate_stream, "Generate text in pieces", tag,
                      GenerateDocument, GenerateAnswer, INFER_STATUSES),
            ]  # fmt: skip
        return routes


class GenerateWriter:
    """Events of one generate_stream; `whole` holds the text back for one event at the end."""

    def __init__(self, model: str, name: str, whole: bool) -> None:
        self._answer = GenerateAnswer(model, "", "", name)
        self._head = b""
        self._pieces: list[str] | None = [] if whole else None

    def write(self, event: Event) -> bytes:
        if isinstance(event, Piece):
            if self._pieces is not None:
                self._pieces.append(event.text)
            elif event.text:
                return b"".join((self._head, encode(event.text), b"}\n\n"))
        elif isinstance(event, Started):
            self._answer.model_version = event.version
            fields = msgspec.to_builtins(self._answer)
            del fields["text_output"]
            self._head = b"data: " + encode(fields)[:-1] + b',"text_output":'
        return b""

    def end(self) -> bytes:
        if self._pieces is None:
            return b""
        return b"".join((self._head, encode("".join(self._pieces)), b"}\n\n"))

    def fail(self, error: ForetellError) -> bytes:
        return event(encode({"error": error.message}))


def _json_object(raw: Body, place: str = "") -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"the request does not fit generate: {error}; send an object with text_input{place}"
        ) from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body is not UTF-8: {error}. Encode text as UTF-8{place}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        hint = "" if raw else " (the body is empty)"
        raise InvalidInput(f"the body is not JSON: {error}{hint}{place}") from None
