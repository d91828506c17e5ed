"""Rows in, predictions out over a WebSocket: /v2/models/{model}/stream. Each message stands alone; an error of one is
its answer and ends nothing.
"""

import asyncio
from typing import Any

import msgspec

from foretell.core.columns import to_tensor
from foretell.core.errors import ForetellError, InvalidInput, Overloaded, did_you_mean
from foretell.core.reference import Reference
from foretell.core.request import Request as InferRequest
from foretell.core.request import Response as InferResponse
from foretell.core.tensor import Signature, Tensors
from foretell.server.answer import write_answer
from foretell.server.convert import RequestReader
from foretell.server.door import Inference
from foretell.server.http import Request, Response, explain, status_of
from foretell.server.oip import reference_of
from foretell.server.router import Route
from foretell.server.websocket import upgrade
from foretell.store.sample import encode_columns

PROTOCOL = "websocket"
"""How these requests are called in observations."""
LONGEST_WAIT_S = 1.0
STATUSES = (400, 403, 404, 405, 426)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class RowAnswer(msgspec.Struct):
    """The answer to a row: an output's value of that row under its name."""

    model: str
    outputs: dict[str, Any]


class RowError(msgspec.Struct, omit_defaults=True):
    """The answer to a message that has none. `status` is what HTTP would say."""

    error: str
    status: int
    id: str = ""


class RowStreams:
    """The handler of the route over one plane."""

    def __init__(self, plane: Inference) -> None:
        self._plane = plane

    async def stream(self, request: Request) -> Response:
        """A model that is not served is refused here; later, messages are."""
        reference = reference_of(request.params["model"], request.params.get("version", ""))
        self._plane.signature(reference)
        sticky = request.header(b"foretell-sticky").decode("latin-1")
        return upgrade(request, RowStream(self._plane, reference, sticky).answer)

    def routes(self) -> list[Route]:
        """The route table; the route also comes with /versions/{version}."""
        tag = "Open Inference Protocol"
        bases = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        summary = "Rows in, predictions out (WebSocket)"
        return [Route("GET", base + "/stream", self.stream, summary, tag, None, RowAnswer, STATUSES) for base in bases]


class RowStream:
    """Answers the messages of one connection."""

    def __init__(self, plane: Inference, reference: Reference, sticky: str) -> None:
        self._plane = plane
        self._reference = reference
        self._sticky = sticky
        self._reader: tuple[Signature, RequestReader] | None = None

    async def answer(self, data: bytes) -> bytes:
        """A row {"input": value, …}, or a request of the protocol, which has "inputs"; the answer in the same form."""
        name = ""
        try:
            fields = _fields(data)
            signature = self._plane.signature(self._reference)
            if "inputs" in fields and all(spec.name != "inputs" for spec in signature.inputs):
                name = _id_of(fields)
                return await self._answer_request(data, signature)
            return await self._answer_row(fields, signature)
        except Exception as error:
            told = explain(error)
            return _encode(RowError(told.message, status_of(told), name))

    async def _answer_request(self, data: bytes, signature: Signature) -> bytes:
        if self._reader is None or self._reader[0] is not signature:
            self._reader = (signature, RequestReader(signature))
        try:
            call = self._reader[1].read(Request(b"", b"", {}, data))
            if call.binary or any(output.binary for output in call.outputs or ()):
                raise InvalidInput("a text message holds no binary outputs; leave binary_data out")
        except ForetellError as error:
            self._plane.refused(self._reference, error, PROTOCOL)
            raise
        written = write_answer(call, await self._infer(call.request))
        return bytes(written.body)  # type: ignore[arg-type]

    async def _answer_row(self, fields: dict[str, msgspec.Raw], signature: Signature) -> bytes:
        try:
            inputs = row_inputs(fields, signature)
        except ForetellError as error:
            self._plane.refused(self._reference, error, PROTOCOL)
            raise
        response = await self._infer(InferRequest(inputs, 0))
        columns = encode_columns(response.outputs)
        outputs = {name: column[0] for name, column in columns.items()} if signature.batchable else columns
        return _encode(RowAnswer(f"{response.model}@{response.version}", outputs))

    async def _infer(self, request: InferRequest) -> InferResponse:
        """A full queue holds the stream up instead of failing its rows, unless they have a deadline."""
        request.protocol = PROTOCOL
        request.sticky = request.sticky or self._sticky
        while True:
            try:
                return await self._plane.infer(self._reference, request)
            except Overloaded as error:
                if request.deadline is not None:
                    raise
                await asyncio.sleep(min(error.retry_after_s, LONGEST_WAIT_S))


def row_inputs(fields: dict[str, msgspec.Raw], signature: Signature) -> Tensors:
    """One row of each input. Raises `InvalidInput` with the place."""
    known = [spec.name for spec in signature.inputs]
    for name in fields:
        if name not in known:
            raise InvalidInput(f'unknown input "{name}" (at $.{name}). {did_you_mean(name, known)}')
    inputs: Tensors = {}
    for spec in signature.inputs:
        if spec.name not in fields:
            raise InvalidInput(f'input "{spec.name}" is missing; the model expects {spec}')
        value = msgspec.json.decode(fields[spec.name])
        inputs[spec.name] = to_tensor([value] if signature.batchable else value, spec)
    return inputs


def _fields(data: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the message is no JSON object: {error}") from None


def _id_of(fields: dict[str, msgspec.Raw]) -> str:
    """The id of a request, so that its error can be told from others'."""
    try:
        return msgspec.json.decode(fields.get("id", b'""'), type=str)
    except msgspec.MsgspecError:
        return ""
