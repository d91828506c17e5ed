"""Typed contents and raw bytes are the same tensor: a property of every datatype and shape."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2

from foretell.core.errors import InvalidInput
from foretell.core.tensor import DTYPES, Tensor, from_wire, to_wire
from foretell.server import oip_pb2
from foretell.server.grpc_codec import TYPED_FIELDS, read_contents, read_inputs, write_contents, write_outputs

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@st.composite
def tensors(draw: st.DrawFn, datatypes: tuple[str, ...] = tuple(DTYPES)) -> tuple[str, Tensor]:
    datatype = draw(st.sampled_from(datatypes))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        flat = draw(st.lists(st.binary(max_size=9), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        array = np.empty(len(flat), dtype=object)
        array[:] = flat
        return datatype, array.reshape(shape)
    return datatype, draw(hnp.arrays(DTYPES[datatype], shape))


def test_every_datatype_but_fp16_has_a_typed_field():
    assert set(DTYPES) - set(TYPED_FIELDS) == {"FP16"}


@given(tensors(tuple(TYPED_FIELDS)))
def test_a_tensor_survives_typed_contents(case):
    datatype, array = case
    contents = oip_pb2.InferTensorContents()
    write_contents(array, contents)
    sent = oip_pb2.InferTensorContents.FromString(contents.SerializeToString())
    back = read_contents(sent, datatype, array.shape, "x")
    assert back.dtype == DTYPES[datatype]
    np.testing.assert_array_equal(back, array)


@given(tensors())
def test_a_tensor_written_as_raw_output_is_read_back_the_same(case):
    datatype, array = case
    answer = oip_pb2.ModelInferResponse()
    write_outputs({"x": array}, ["x"], True, answer)
    (tensor,) = answer.outputs
    assert tensor.datatype == datatype
    back = from_wire(answer.raw_output_contents[0], tensor.datatype, tuple(tensor.shape), "x")
    np.testing.assert_array_equal(back, array)


@given(tensors())
def test_raw_inputs_are_what_tritons_own_messages_carry(case):
    datatype, array = case
    theirs = service_pb2.ModelInferRequest(model_name="m")
    theirs.inputs.add(name="x", datatype=datatype, shape=array.shape)
    theirs.raw_input_contents.append(bytes(to_wire(array)))
    ours = oip_pb2.ModelInferRequest.FromString(theirs.SerializeToString())
    np.testing.assert_array_equal(read_inputs(ours)["x"], array)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_an_error_of_ours(data):
    try:
        message = oip_pb2.ModelInferRequest.FromString(data)
    except Exception:  # protobuf's own refusal, which the server never hands to the codec
        return
    try:
        read_inputs(message)
    except InvalidInput:
        pass


@given(
    st.sampled_from([*DTYPES, "FP8", ""]),
    st.lists(st.integers(-2, 6), max_size=3),
    st.binary(max_size=64),
)
def test_any_datatype_shape_and_raw_bytes_are_a_tensor_or_an_error_that_names_the_input(datatype, shape, raw):
    message = oip_pb2.ModelInferRequest(raw_input_contents=[raw or b"\0"])
    message.inputs.add(name="field", datatype=datatype, shape=shape)
    complaint = ""
    try:
        assert list(read_inputs(message)["field"].shape) == shape
    except InvalidInput as error:
        complaint = error.message
    assert not complaint or '"field"' in complaint


def test_an_fp16_output_makes_a_typed_answer_raw():
    answer = oip_pb2.ModelInferResponse()
    outputs = {"a": np.zeros(2, np.float16), "b": np.ones(2, np.float32)}
    write_outputs(outputs, outputs, False, answer)
    assert [len(raw) for raw in answer.raw_output_contents] == [4, 8]
    assert not any(tensor.HasField("contents") for tensor in answer.outputs)


@pytest.mark.parametrize("message", ["ModelInferRequest", "ModelInferResponse", "ModelStatistics", "ModelConfig"])
def test_our_fields_have_the_numbers_and_types_of_tritons(message):
    from tritonclient.grpc import model_config_pb2

    theirs = getattr(service_pb2, message, None) or getattr(model_config_pb2, message)
    known = {f.name: f for f in theirs.DESCRIPTOR.fields}
    ours = getattr(oip_pb2, message).DESCRIPTOR.fields
    assert ours
    for field in ours:
        assert (field.number, field.type) == (known[field.name].number, known[field.name].type)
