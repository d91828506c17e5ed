"""Open Inference Protocol v2 over HTTP to core values and back: JSON, binary tensors, raw bodies.

Every error names the place in the document. Knows neither routes nor the plane.
"""

import time
from typing import Any

import msgspec

from foretell.core.errors import InvalidInput, PayloadTooLarge, Unsupported, did_you_mean
from foretell.core.request import Request as InferRequest
from foretell.core.tensor import DTYPES, Signature, Tensor, Tensors, TensorSpec, from_wire
from foretell.server.http import Body, Request
from foretell.server.json_data import read_data

Parameters = dict[str, Any]

MAX_JSON_BYTES = 16 * 2**20
"""Beyond this a JSON document would hold the loop, and some thirty times its size in memory, for too long."""

_KNOWN = ("priority", "timeout", "sticky", "binary_data_output")
_SILENT = ("content_type", "headers", "triton_enable_empty_final_response")


class InputTensor(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One input. `data` is a list, flat in row-major order or nested as `shape`; without it the tensor's bytes
    follow the JSON document and parameters.binary_data_size tells how many.
    """

    name: str
    datatype: str
    shape: list[int]
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    parameters: Parameters | None = None


class RequestedOutput(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An output to return. parameters: binary_data (bool), classification (top k as "score:index")."""

    name: str
    parameters: Parameters | None = None


class InferDocument(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The JSON body of an inference request. parameters: priority (0 is the default, smaller runs earlier),
    timeout (microseconds), sticky (routing key), binary_data_output (bool).
    """

    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None = None
    id: str = ""
    parameters: Parameters | None = None
    model_name: str = ""
    model_version: str = ""


class WantedOutput(msgspec.Struct, frozen=True, gc=False):
    """How one output is to be written; `classes` > 0 asks for the best classes instead of the tensor."""

    name: str
    binary: bool
    classes: int = 0


class Call(msgspec.Struct, gc=False):
    """A decoded inference request and how its answer is to be written. `outputs` None means all of them."""

    request: InferRequest
    outputs: list[WantedOutput] | None
    binary: bool
    id: str


_decoder = msgspec.json.Decoder(InferDocument)


class RequestReader:
    """Decodes the requests of one signature. Made once per served version, not per request."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._inputs = {s.name: s for s in signature.inputs}
        self._outputs = frozenset(s.name for s in signature.outputs)

    def read(self, request: Request) -> Call:
        """The call that an HTTP request asks for; the plane checks it against the signature and counts the
        rows. Raises `InvalidInput` or `Unsupported`."""
        length = request.headers.get(b"inference-header-content-length")
        body = request.body
        if length is None:
            document = decode_document(body)
            tail: memoryview | None = None
        else:
            split = _header_length(length, len(body))
            if split == 0:
                return self._raw(request)
            view = memoryview(body)
            document = decode_document(view[:split])
            tail = view[split:]
        call = self._call(request, document, self._tensors(document.inputs, tail))
        if document.outputs is not None:
            call.outputs = [self._wanted(i, o, call.binary) for i, o in enumerate(document.outputs)]
        return call

    def _call(self, request: Request, document: InferDocument, inputs: Tensors) -> Call:
        headers = request.headers
        infer = InferRequest(inputs, 0, document.id, protocol="rest")
        if not document.id and b"x-request-id" in headers:
            infer.id = headers[b"x-request-id"][:128].decode("latin-1")
        if b"foretell-sticky" in headers:
            infer.sticky = headers[b"foretell-sticky"].decode("latin-1")
        binary = bool(document.parameters) and _apply(document.parameters or {}, infer)
        return Call(infer, None, binary, document.id)

    def _tensors(self, tensors: list[InputTensor], tail: memoryview | None) -> Tensors:
        inputs: Tensors = {}
        for index, tensor in enumerate(tensors):
            spec = self._inputs.get(tensor.name)
            if spec is None:
                near = did_you_mean(tensor.name, self._inputs)
                raise InvalidInput(f'unknown input "{tensor.name}" (at $.inputs[{index}].name). {near}')
            if tensor.datatype != spec.datatype:
                raise _wrong_datatype(index, tensor, spec)
            if tensor.name in inputs:
                raise InvalidInput(f'input "{tensor.name}" comes twice (at $.inputs[{index}].name)')
            size = None
            if tensor.parameters is not None:
                size = _binary_size(index, tensor, tensor.parameters)
            if size is None:
                array = read_data(tensor.data, tensor.datatype, tensor.shape, tensor.name, index)
            else:
                array, tail = _take(index, tensor, size, tail)
            inputs[tensor.name] = array
        if tail:
            raise InvalidInput(
                f"{len(tail)} bytes follow the last binary tensor; Inference-Header-Content-Length and the"
                " binary_data_size of all inputs must add up to the body"
            )
        return inputs

    def _wanted(self, index: int, output: RequestedOutput, binary: bool) -> WantedOutput:
        where = f"$.outputs[{index}]"
        if output.name not in self._outputs:
            near = did_you_mean(output.name, self._outputs)
            raise InvalidInput(f'unknown output "{output.name}" (at {where}.name). {near}')
        classes = 0
        for name, value in (output.parameters or {}).items():
            if name == "binary_data" and isinstance(value, bool):
                binary = value
            elif name == "classification" and type(value) is int and value >= 0:
                classes = value
            elif name.startswith("shared_memory"):
                raise Unsupported(f"shared memory is not offered (at {where}.parameters); send tensors in the body")
            else:
                raise InvalidInput(
                    f'parameter "{name}" of output "{output.name}" is unknown or of the wrong type (at'
                    f" {where}.parameters); known: binary_data (true or false), classification (a count)"
                )
        return WantedOutput(output.name, binary, classes)

    def _raw(self, request: Request) -> Call:
        """The whole body is the one input; its variable dimension follows from the size."""
        specs = self._signature.inputs
        if len(specs) != 1:
            raise InvalidInput(
                f"a raw request (Inference-Header-Content-Length: 0) needs a model with one input, this has"
                f" {len(specs)}; send JSON with binary tensors"
            )
        array = _raw_tensor(specs[0], request.body)
        call = self._call(request, InferDocument([]), {specs[0].name: array})
        call.binary = True
        return call


def decode_document(body: Body) -> InferDocument:
    """Parse the JSON part of a request. Raises `InvalidInput` that says where it is wrong."""
    if len(body) > MAX_JSON_BYTES:
        raise PayloadTooLarge(
            f"the JSON has {len(body)} bytes, at most {MAX_JSON_BYTES} are read; send large tensors in binary"
        )
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the request does not fit the protocol: {error}") from None
    except msgspec.DecodeError as error:
        hint = "" if len(body) else " (the body is empty)"
        raise InvalidInput(f"the body is not JSON: {error}{hint}. For binary tensors set"
                           " Inference-Header-Content-Length") from None  # fmt: skip
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the JSON is not UTF-8: {error}") from None
    except RecursionError:
        raise InvalidInput("the JSON is nested too deeply; data needs at most one list per dimension") from None


def _header_length(value: bytes, size: int) -> int:
    text = value.strip()
    if not text.isdigit() or len(text) > 18:
        raise InvalidInput(f'Inference-Header-Content-Length is "{text[:20].decode("latin-1")}", not a byte count')
    length = int(text)
    if length > size:
        raise InvalidInput(
            f"Inference-Header-Content-Length is {length}, the body has {size} bytes; it is the length of the"
            " JSON before the binary tensors"
        )
    return length


def _wrong_datatype(index: int, tensor: InputTensor, spec: TensorSpec) -> InvalidInput:
    where = f"(at $.inputs[{index}].datatype)"
    if tensor.datatype not in DTYPES:
        near = did_you_mean(tensor.datatype, DTYPES)
        return InvalidInput(f'input "{tensor.name}" has unknown datatype "{tensor.datatype}" {where}. {near}')
    return InvalidInput(
        f'input "{tensor.name}" has datatype {tensor.datatype}, the model expects {spec.datatype} {where}.'
        " Convert it before sending"
    )


def _binary_size(index: int, tensor: InputTensor, parameters: Parameters) -> int | None:
    size = None
    where = f"$.inputs[{index}].parameters"
    for name, value in parameters.items():
        if name == "binary_data_size":
            if type(value) is not int or value < 0:
                raise InvalidInput(f"{where}.binary_data_size is {value!r}; it counts bytes")
            size = value
        elif name.startswith("shared_memory"):
            raise Unsupported(f"shared memory is not offered (at {where}); send tensors in the body")
        elif name not in _SILENT and name != "binary_data":
            near = did_you_mean(name, ("binary_data_size",))
            raise InvalidInput(f'unknown parameter "{name}" of input "{tensor.name}" (at {where}). {near}')
    return size


def _take(index: int, tensor: InputTensor, size: int, tail: memoryview | None) -> tuple[Tensor, memoryview]:
    """The next `size` bytes behind the document as this tensor, and what is left."""
    where = f"(at $.inputs[{index}].parameters.binary_data_size)"
    if tail is None:
        raise InvalidInput(
            f'input "{tensor.name}" is binary {where}, but the header Inference-Header-Content-Length is missing'
        )
    if tensor.data:
        raise InvalidInput(f'input "{tensor.name}" has both data and binary_data_size {where}; send one')
    if size > len(tail):
        raise InvalidInput(
            f'input "{tensor.name}" claims {size} binary bytes {where}, {len(tail)} are left in the body'
        )
    return from_wire(tail[:size], tensor.datatype, tuple(tensor.shape), tensor.name), tail[size:]


def _raw_tensor(spec: TensorSpec, body: Body) -> Tensor:
    shape = list(spec.shape)
    free = [axis for axis, dim in enumerate(shape) if dim < 0]
    if spec.datatype == "BYTES":
        item = len(body).to_bytes(4, "little") + bytes(body)
        return from_wire(item, "BYTES", tuple(1 if dim < 0 else dim for dim in shape), spec.name)
    if len(free) == 2 and free[0] == 0:
        shape[free.pop(0)] = 1
    if len(free) > 1:
        raise InvalidInput(f"a raw request cannot tell the shape of {spec}; send JSON with a binary tensor")
    size = DTYPES[spec.datatype].itemsize
    for dim in shape:
        size *= max(1, dim)
    if free and size and len(body) % size == 0:
        shape[free[0]] = len(body) // size
    elif free:
        raise InvalidInput(f"the raw body has {len(body)} bytes, no multiple of the {size} that a row of {spec} takes")
    return from_wire(memoryview(body), spec.datatype, tuple(shape), spec.name)


def _apply(parameters: Parameters, infer: InferRequest) -> bool:
    """Put the parameters into the request; returns whether outputs are binary unless asked otherwise."""
    binary = False
    for name, value in parameters.items():
        if name == "binary_data_output" and isinstance(value, bool):
            binary = value
        elif name == "timeout" and type(value) is int and value >= 0:
            infer.deadline = time.monotonic() + value / 1e6 if value else None
        elif name == "priority" and type(value) is int and abs(value) < 2**31:
            infer.priority = value
        elif name == "sticky" and isinstance(value, str):
            infer.sticky = value
        elif name in _KNOWN:
            raise InvalidInput(
                f"$.parameters.{name} is {value!r}; priority is a whole number, timeout is microseconds, sticky a"
                " string, binary_data_output true or false"
            )
        elif name.startswith("sequence_"):
            raise Unsupported(f"$.parameters.{name}: stateful sequences are not served; requests stand alone")
        elif name not in _SILENT:
            raise InvalidInput(f"unknown parameter at $.parameters.{name}. {did_you_mean(name, _KNOWN)}")
    return binary
