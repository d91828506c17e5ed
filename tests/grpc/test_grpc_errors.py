"""Bad requests and faults over gRPC: each gets its status code and a message that names the field."""

import asyncio

import grpc
import numpy as np
import pytest

from foretell.core.errors import ConfigError, ForetellError, Overloaded
from foretell.server import oip_pb2
from foretell.server.grpc import GrpcServer, GrpcSettings
from foretell.server.grpc_service import SERVICE
from foretell.testing import FakePlane

ROW = np.array([[1, 2, 3, 4]], dtype=np.float32)


def question(model: str = "digits", **changes) -> oip_pb2.ModelInferRequest:
    """A good request for `digits`, with the fields of its only input replaced by `changes`."""
    request = oip_pb2.ModelInferRequest(model_name=model)
    fields = {"name": "pixels", "datatype": "FP32", "shape": [1, 4], "raw": ROW.tobytes()} | changes
    raw = fields.pop("raw")
    request.inputs.add(**fields)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


async def ask(channel: grpc.aio.Channel, request: oip_pb2.ModelInferRequest, **options) -> object:
    call = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=oip_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=oip_pb2.ModelInferResponse.FromString,
    )
    return await call(request, **options)


async def refusal(channel: grpc.aio.Channel, request: oip_pb2.ModelInferRequest) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(channel, request)
    assert caught.value.details() is not None
    return caught.value.code().name, str(caught.value.details())


def two_inputs() -> oip_pb2.ModelInferRequest:
    request = question()
    request.inputs.add(name="extra", datatype="FP32", shape=[1])
    request.raw_input_contents.append(b"\0\0\0\0")
    return request


def same_input_twice() -> oip_pb2.ModelInferRequest:
    request = question()
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    return request


def raw_and_typed() -> oip_pb2.ModelInferRequest:
    request = question()
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    return request


def typed(datatype: str = "FP32", shape: tuple[int, ...] = (1, 4), **contents) -> oip_pb2.ModelInferRequest:
    return question(raw=None, datatype=datatype, shape=shape, contents=oip_pb2.InferTensorContents(**contents))


def more_raw_than_inputs() -> oip_pb2.ModelInferRequest:
    request = question()
    request.raw_input_contents.append(b"")
    return request


def with_parameter(name: str, **value) -> oip_pb2.ModelInferRequest:
    request = question()
    request.parameters[name].CopyFrom(oip_pb2.InferParameter(**value))
    return request


def with_output(name: str, **parameters) -> oip_pb2.ModelInferRequest:
    request = question()
    output = request.outputs.add(name=name)
    for key, value in parameters.items():
        output.parameters[key].int64_param = value
    return request


NAN = np.array([[np.nan, 0, 0, 0]], dtype=np.float32).tobytes()

WRONG = {
    "unknown input": (question(name="pixel"), 'unknown input "pixel". Did you mean "pixels"?'),
    "missing input": (oip_pb2.ModelInferRequest(model_name="digits"), 'input "pixels" is missing'),
    "extra input": (two_inputs(), 'unknown input "extra"'),
    "input given twice": (same_input_twice(), 'input "pixels" is given twice'),
    "wrong datatype": (question(datatype="INT32"), 'input "pixels" has datatype INT32, the model expects FP32'),
    "unknown datatype": (question(datatype="FP23"), 'unknown datatype "FP23"'),
    "wrong shape": (question(shape=[4, 1]), 'input "pixels" has shape [4, 1], the model expects [-1, 4]'),
    "wrong rank": (question(shape=[4]), 'input "pixels" has shape [4]'),
    "negative dimension": (question(shape=[-1, 4]), "has a negative dimension"),
    "no rows": (question(shape=[0, 4], raw=b""), "the request has no rows"),
    "truncated raw bytes": (question(raw=ROW.tobytes()[:-1]), "needs 16 bytes, the data holds 15"),
    "more raw entries than inputs": (more_raw_than_inputs(), "raw_input_contents has 2 entries for 1 inputs"),
    "raw and typed at once": (raw_and_typed(), 'input "pixels" has both contents and raw_input_contents'),
    "no data at all": (typed(), "needs 4 elements, fp32_contents holds 0"),
    "too few typed elements": (typed(fp32_contents=[1.0]), "needs 4 elements, fp32_contents holds 1"),
    "elements in another field": (typed(int_contents=[1, 2, 3, 4]), "its elements belong in fp32_contents"),
    "typed FP16": (typed(datatype="FP16"), "FP16 has no typed contents; send it in raw_input_contents"),
    "typed element out of range": (
        typed(datatype="INT8", int_contents=[1, 2, 3, 200]),
        "200 in int_contents is out of the range of INT8",
    ),
    "NaN where refused": (question(raw=NAN), 'input "pixels" holds NaN or infinity'),
    "a BYTES length that lies": (
        question("text", name="text", datatype="BYTES", shape=[1], raw=b"\x09\0\0\0abc"),
        'input "text": a BYTES element claims 9 bytes, 3 are left',
    ),
    "stray bytes after BYTES": (
        question("text", name="text", datatype="BYTES", shape=[1], raw=b"\x01\0\0\0ab"),
        "1 stray bytes",
    ),
    "unknown output": (with_output("totals"), 'unknown output "totals". Did you mean "total"?'),
    "no classes": (with_output("total", classification=0), 'output "total": classification is 0'),
    "unknown parameter": (with_parameter("timeuot", int64_param=1), 'Did you mean "timeout"?'),
    "parameter of a wrong type": (with_parameter("timeout", string_param="1s"), "send a whole number"),
    "a priority out of range": (with_parameter("priority", uint64_param=2**40), "give a number of 32 bits"),
    "negative timeout": (with_parameter("timeout", int64_param=-1), "give microseconds, 0 or more"),
    "not a name": (question("a/b"), '"a/b" is not a reference'),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_request_is_an_invalid_argument_and_the_message_says_what(channel, case):
    request, message = WRONG[case]
    code, details = await refusal(channel, request)
    assert code == "INVALID_ARGUMENT"
    assert message in details
    assert await ask(channel, question())


async def test_a_name_and_a_version_that_disagree_are_refused(channel):
    request = question("digits@1")
    request.model_version = "2"
    code, details = await refusal(channel, request)
    assert (code, 'the name "digits@1" and version "2" disagree' in details) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (with_parameter("sequence_id", int64_param=7), "stateful sequences are not served"),
        (with_output("label", shared_memory_byte_size=3), "shared memory is not served"),
    ],
)
async def test_what_this_server_does_not_do_is_unimplemented(channel, request_, message):
    code, details = await refusal(channel, request_)
    assert code == "UNIMPLEMENTED"
    assert message in details


async def test_unknown_models_and_versions_are_not_found_and_the_nearest_is_named(channel):
    assert await refusal(channel, question("digit")) == (
        "NOT_FOUND",
        'no model "digit" is served here. Did you mean "digits"?',
    )
    code, details = await refusal(channel, question("digits@7"))
    assert (code, '"digits" has no version or alias "7"' in details) == ("NOT_FOUND", True)


async def test_a_model_that_raises_is_named_and_the_server_stays_up(channel):
    assert await refusal(channel, question("poison")) == (
        "INTERNAL",
        'model "poison" raised ValueError: bad row',
    )
    assert await ask(channel, question())


async def test_a_bug_is_internal_and_tells_no_secrets(channel):
    code, details = await refusal(channel, question("bug"))
    assert code == "INTERNAL"
    assert "ZeroDivisionError" in details
    assert "secret" not in details


def every_error() -> list[type[ForetellError]]:
    found, left = [], [ForetellError]
    while left:
        kind = left.pop()
        found.append(kind)
        left.extend(k for k in kind.__subclasses__() if k.__module__ == "foretell.core.errors")
    return found


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
async def test_every_error_becomes_its_own_status_code_with_its_message(channel, plane: FakePlane, kind):
    plane.refuse = kind("why", 1.5) if kind is Overloaded else kind("why")
    assert await refusal(channel, question()) == (kind.grpc_code, "why")


async def test_an_overload_tells_when_to_come_back(channel, plane: FakePlane):
    plane.refuse = Overloaded("the queue is full", retry_after_s=1.25)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(channel, question())
    trailing = dict(caught.value.trailing_metadata() or ())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailing["retry-after"] == "2"
    assert trailing["grpc-retry-pushback-ms"] == "1250"


async def test_a_message_over_the_limit_is_refused_and_the_next_one_is_answered(channel):
    rows = 2**20
    code, details = await refusal(channel, question(shape=[rows // 16, 4], raw=bytes(rows)))
    assert code == "RESOURCE_EXHAUSTED"
    assert str(2**20) in details
    assert await ask(channel, question())


async def test_an_answer_may_be_larger_than_the_limit_for_questions(server, plane: FakePlane):
    plane.served[1].predict = lambda inputs: {"total": np.zeros(2**19, np.float32), "label": np.zeros(1)}
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
        request = question()
        request.outputs.add(name="total")
        answer = await ask(channel, request)
    assert len(answer.raw_output_contents[0]) == 2**21


async def test_a_message_that_is_no_protobuf_harms_nobody_else(channel):
    garbage = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await garbage(b"\xff\xff\xff\xff not a message")
    assert caught.value.code() is not grpc.StatusCode.OK
    assert await ask(channel, question())


async def test_an_unknown_method_is_unimplemented(channel):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"/{SERVICE}/ModelDream")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_two_servers_on_one_port_give_an_error_that_names_the_port(server, plane: FakePlane):
    second = GrpcServer(plane, GrpcSettings())
    with pytest.raises(ConfigError, match=rf"port {server.port} .*--grpc-port"):
        await second.start("127.0.0.1", server.port)


async def test_a_drain_lets_calls_in_flight_finish_and_refuses_new_ones(server, channel, plane: FakePlane):
    next(m for m in plane.served if m.name == "slow").delay_s = 0.3
    running = asyncio.create_task(ask(channel, question("slow")))
    while not plane.requests:
        await asyncio.sleep(0.01)
    draining = asyncio.create_task(server.drain(5.0))
    await asyncio.sleep(0.05)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(channel, question())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (await running).model_name == "slow"
    await draining


async def test_a_drain_cancels_what_outlasts_its_grace(server, channel, plane: FakePlane):
    running = asyncio.create_task(ask(channel, question("slow")))
    while not plane.requests:
        await asyncio.sleep(0.01)
    await server.drain(0.05)
    with pytest.raises(grpc.aio.AioRpcError):
        await running
    assert plane.cancelled == 1
