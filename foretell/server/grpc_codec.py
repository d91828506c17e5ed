"""Translates between the messages of oip.proto and core's values. Knows neither gRPC calls nor the plane."""

from collections.abc import Iterable

import numpy as np

from foretell.core.errors import InvalidInput, Unsupported, did_you_mean
from foretell.core.tensor import DTYPES, Signature, Tensor, Tensors, datatype_of, from_wire, pack_bytes
from foretell.server import oip_pb2

TYPED_FIELDS: dict[str, tuple[str, np.dtype]] = {
    "BOOL": ("bool_contents", np.dtype(np.bool_)),
    "UINT8": ("uint_contents", np.dtype(np.uint32)),
    "UINT16": ("uint_contents", np.dtype(np.uint32)),
    "UINT32": ("uint_contents", np.dtype(np.uint32)),
    "UINT64": ("uint64_contents", np.dtype(np.uint64)),
    "INT8": ("int_contents", np.dtype(np.int32)),
    "INT16": ("int_contents", np.dtype(np.int32)),
    "INT32": ("int_contents", np.dtype(np.int32)),
    "INT64": ("int64_contents", np.dtype(np.int64)),
    "FP32": ("fp32_contents", np.dtype(np.float32)),
    "FP64": ("fp64_contents", np.dtype(np.float64)),
    "BYTES": ("bytes_contents", np.dtype(object)),
}
"""Which field of InferTensorContents carries a datatype, and the dtype of that field. FP16 has none."""

_NUMBERS = ("int64_param", "uint64_param")


class Options:
    """What a request's parameters ask for. `timeout_s` is 0 where none is set."""

    __slots__ = ("final_mark", "priority", "sticky", "timeout_s")

    def __init__(self) -> None:
        self.priority = 0
        self.timeout_s = 0.0
        self.sticky = ""
        self.final_mark = False


NO_OPTIONS = Options()
_KNOWN = ("priority", "timeout", "sticky", "triton_enable_empty_final_response")
_SILENT = ("binary_data", "binary_data_size", "binary_data_output", "content_type")


def read_options(message: oip_pb2.ModelInferRequest) -> Options:
    """The parameters of a request. Raises `InvalidInput` for an unknown name or a wrong type, `Unsupported`
    for what only other servers do (sequences, shared memory).
    """
    options = Options()
    for name, value in message.parameters.items():
        if name == "priority":
            options.priority = _number(name, value)
            if abs(options.priority) >= 2**31:
                raise InvalidInput(f'parameter "priority" is {options.priority}; give a number of 32 bits')
        elif name == "timeout":
            microseconds = _number(name, value)
            if microseconds < 0:
                raise InvalidInput(f'parameter "timeout" is {microseconds}; give microseconds, 0 or more')
            options.timeout_s = microseconds / 1e6
        elif name == "sticky":
            options.sticky = value.string_param
        elif name == "triton_enable_empty_final_response":
            options.final_mark = value.bool_param
        elif name.startswith("sequence_"):
            raise Unsupported(f'parameter "{name}": stateful sequences are not served; requests stand alone')
        elif name not in _SILENT:
            raise InvalidInput(f'unknown parameter "{name}". {did_you_mean(name, _KNOWN)}')
    return options


def _number(name: str, value: oip_pb2.InferParameter) -> int:
    kind = value.WhichOneof("parameter_choice")
    if kind in _NUMBERS:
        return int(getattr(value, kind))
    raise InvalidInput(f'parameter "{name}" came as {kind or "nothing"}; send a whole number (int64_param)')


def read_inputs(message: oip_pb2.ModelInferRequest) -> Tensors:
    """The input tensors by name; raw ones are views of the message's bytes. Raises `InvalidInput` that names
    the input when sizes, datatypes or fields disagree.
    """
    tensors = message.inputs
    raw = message.raw_input_contents
    if raw and len(raw) != len(tensors):
        raise InvalidInput(
            f"raw_input_contents has {len(raw)} entries for {len(tensors)} inputs; send one an input, for all"
            " inputs or for none"
        )
    inputs: Tensors = {}
    for at, tensor in enumerate(tensors):
        name = tensor.name
        if tensor.parameters:
            refuse_tensor_parameters("input", name, tensor.parameters)
        if raw:
            if tensor.HasField("contents"):
                raise InvalidInput(f'input "{name}" has both contents and raw_input_contents[{at}]; send one')
            inputs[name] = from_wire(raw[at], tensor.datatype, tuple(tensor.shape), name)
        else:
            inputs[name] = read_contents(tensor.contents, tensor.datatype, tuple(tensor.shape), name)
    if len(inputs) != len(tensors):
        names = [t.name for t in tensors]
        twice = next(n for n in names if names.count(n) > 1)
        raise InvalidInput(f'input "{twice}" is given twice')
    return inputs


def read_contents(
    contents: oip_pb2.InferTensorContents, datatype: str, shape: tuple[int, ...], name: str = ""
) -> Tensor:
    """The tensor in typed contents. Raises `InvalidInput` if elements are missing, too many, out of the
    datatype's range, or in another datatype's field.
    """
    if datatype not in DTYPES:
        raise InvalidInput(f'input "{name}": unknown datatype "{datatype}". {did_you_mean(datatype, DTYPES)}')
    if datatype not in TYPED_FIELDS:
        raise InvalidInput(f'input "{name}": {datatype} has no typed contents; send it in raw_input_contents')
    if any(d < 0 for d in shape):
        raise InvalidInput(f'input "{name}": shape {list(shape)} has a negative dimension')
    count = 1
    for d in shape:
        count *= d
    field, dtype = TYPED_FIELDS[datatype]
    stray = [f.name for f, _ in contents.ListFields() if f.name != field]
    if stray:
        raise InvalidInput(f'input "{name}" is {datatype}: its elements belong in {field}, not {stray[0]}')
    values = getattr(contents, field)
    if len(values) != count:
        raise InvalidInput(f'input "{name}": shape {list(shape)} needs {count} elements, {field} holds {len(values)}')
    if datatype == "BYTES":
        array = np.empty(count, dtype=object)
        array[:] = values
        return array.reshape(shape)
    wide = np.fromiter(values, dtype=dtype, count=count)
    narrow = wide.astype(DTYPES[datatype], copy=False)
    if narrow is not wide and not np.array_equal(narrow, wide):
        worst = wide[narrow != wide][0]
        raise InvalidInput(f'input "{name}": {worst} in {field} is out of the range of {datatype}')
    return narrow.reshape(shape)


def write_contents(array: Tensor, contents: oip_pb2.InferTensorContents) -> None:
    """Put a tensor's elements in the typed field of its datatype (any but FP16)."""
    field, dtype = TYPED_FIELDS[datatype_of(array)]
    if dtype.kind == "O":
        values: Iterable[object] = [_as_bytes(item) for item in array.ravel()]
    else:
        values = array.ravel().tolist()
    getattr(contents, field).extend(values)


def _as_bytes(item: object) -> bytes:
    return item.encode() if isinstance(item, str) else bytes(item)  # type: ignore[call-overload]


def requested_outputs(message: oip_pb2.ModelInferRequest, signature: Signature) -> dict[str, int]:
    """The outputs that the request asks for, in its order, each with how many best classes to answer instead of
    scores (0: the tensor itself).
    """
    wanted: dict[str, int] = {}
    for output in message.outputs:
        classes = 0
        if "classification" in output.parameters:
            classes = _number("classification", output.parameters["classification"])
            if classes < 1:
                raise InvalidInput(f'output "{output.name}": classification is {classes}; ask for 1 class or more')
        refuse_tensor_parameters("output", output.name, output.parameters)
        if all(output.name != spec.name for spec in signature.outputs):
            near = did_you_mean(output.name, [s.name for s in signature.outputs])
            raise InvalidInput(f'unknown output "{output.name}". {near}')
        wanted[output.name] = classes
    return wanted


def refuse_tensor_parameters(side: str, name: str, parameters: Iterable[str]) -> None:
    """Raise `Unsupported` for what other servers do with a tensor's parameters, so that none is swallowed."""
    for parameter in parameters:
        if parameter.startswith("shared_memory_"):
            raise Unsupported(f'{side} "{name}": shared memory is not served; send the bytes in the message')
        if parameter not in _SILENT and not (side == "output" and parameter == "classification"):
            raise InvalidInput(f'{side} "{name}": unknown parameter "{parameter}"')


def write_outputs(outputs: Tensors, names: Iterable[str], raw: bool, message: oip_pb2.ModelInferResponse) -> None:
    """Add the tensors `names` of `outputs` to `message`: as raw bytes, or typed. FP16 among them makes all
    raw, since a message holds raw contents for every output or for none.
    """
    chosen = [(name, outputs[name]) for name in names]
    raw = raw or any(array.dtype == np.float16 for _, array in chosen)
    for name, array in chosen:
        tensor = message.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        if not raw:
            write_contents(array, tensor.contents)
        elif array.dtype.kind == "O":
            message.raw_output_contents.append(pack_bytes(array))
        else:
            message.raw_output_contents.append(array.tobytes())
