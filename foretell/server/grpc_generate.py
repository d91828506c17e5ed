"""Generation over gRPC: one ModelInferRequest with text_input becomes many responses, each with a text_output.

The request's other inputs of one element and its parameters are the fields of `oip_generate.GenerateDocument`.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from foretell.core.errors import ForetellError, InvalidInput
from foretell.core.generation import Piece, Started
from foretell.core.reference import Reference
from foretell.server import oip_pb2
from foretell.server.door import Inference
from foretell.server.grpc_codec import read_inputs
from foretell.server.grpc_method import Message
from foretell.server.oip_generate import GenerateDocument, document_of, request_of

_FINAL = "triton_final_response"


class GenerateMethod:
    """Answers over one plane; `reference` makes a reference of a request's name and version. A `Generating`."""

    def __init__(self, plane: Inference, reference: Callable[[str, str], Reference]) -> None:
        self._plane = plane
        self._reference = reference

    def takes(self, message: Message) -> bool:
        """Whether the request is for a model that generates. Unknown models are left to whoever says so."""
        if not any(tensor.name == "text_input" for tensor in message.inputs):
            return False
        try:
            return "generation" in self._plane.describe(self._reference(message.model_name, message.model_version)).tags
        except ForetellError:
            return False

    async def answer(self, message: Message, deadline: float | None) -> AsyncGenerator[Message, None]:
        """The responses, in pieces unless the request says `stream` false. All carry the parameter
        "triton_final_response"; it is true on an empty last one, which is sent only if the request asked for it by
        "triton_enable_empty_final_response".
        """
        reference = self._reference(message.model_name, message.model_version)
        try:
            document = _document(message)
            request = request_of(document, "grpc")
        except ForetellError as error:
            self._plane.refused(reference, error, "grpc")
            raise
        if deadline is not None:
            request.deadline = deadline if request.deadline is None else min(deadline, request.deadline)
        whole = document.stream is not None and not document.stream
        raw = bool(message.raw_input_contents)
        version = ""
        held: list[str] = []
        async with aclosing(self._plane.generate(reference, request)) as events:
            async for event in events:
                if isinstance(event, Piece):
                    if whole:
                        held.append(event.text)
                    elif event.text:
                        yield _part(reference.name, version, message.id, event.text, raw)
                elif isinstance(event, Started):
                    version = event.version
        if whole:
            yield _part(reference.name, version, message.id, "".join(held), raw)
        if message.parameters["triton_enable_empty_final_response"].bool_param:
            last = oip_pb2.ModelInferResponse(model_name=reference.name, model_version=version, id=message.id)
            last.parameters[_FINAL].bool_param = True
            yield last


def _document(message: Message) -> GenerateDocument:
    fields: dict[str, Any] = {"id": message.id}
    for name, value in message.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        fields[name] = None if kind is None else getattr(value, kind)
    for name, array in read_inputs(message).items():
        if array.size != 1:
            raise InvalidInput(
                f'input "{name}" has {array.size} elements; a request generates for one prompt: shape [1]'
            )
        item = array.reshape(-1)[0]
        fields[name] = _text(name, item) if array.dtype.kind == "O" else item.item()
    return document_of(fields)


def _text(name: str, item: object) -> str:
    try:
        return item if isinstance(item, str) else bytes(item).decode()  # type: ignore[call-overload]
    except UnicodeDecodeError as error:
        raise InvalidInput(f'input "{name}" is not UTF-8: {error}. Encode text as UTF-8') from None


def _part(model: str, version: str, name: str, text: str, raw: bool) -> Message:
    part = oip_pb2.ModelInferResponse(model_name=model, model_version=version, id=name)
    tensor = part.outputs.add(name="text_output", datatype="BYTES", shape=(1,))
    item = text.encode()
    if raw:
        part.raw_output_contents.append(len(item).to_bytes(4, "little") + item)
    else:
        tensor.contents.bytes_contents.append(item)
    part.parameters[_FINAL].bool_param = False
    return part
