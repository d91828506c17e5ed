"""Laws of the conversions: what goes in comes out, in every form; and no bytes make the server stumble."""

import json

import msgspec
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from foretell.core.errors import ForetellError
from foretell.core.request import Response, Timing
from foretell.core.tensor import DTYPES, Signature, TensorSpec, to_wire
from foretell.server.answer import write_answer
from foretell.server.convert import RequestReader
from foretell.server.http import Request
from tests.server.conftest import Live
from tests.server.models import ALL

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
numbers = st.sampled_from(ALL).flatmap(lambda d: st.tuples(st.just(d), hnp.arrays(DTYPES[d], SHAPES)))
finite = numbers.filter(lambda pair: pair[1].dtype.kind != "f" or bool(np.isfinite(pair[1]).all()))
LIMITED = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def reader(datatype: str, array: np.ndarray) -> RequestReader:
    spec = TensorSpec("x", datatype, (-1,) * array.ndim)
    return RequestReader(Signature((spec,), (spec,)))


def request(document: dict, tail: bytes | None = None) -> Request:
    raw = msgspec.json.encode(document)
    headers = {} if tail is None else {b"inference-header-content-length": str(len(raw)).encode()}
    return Request(b"POST", b"/", headers, raw + (tail or b""))


def tensor(datatype: str, array: np.ndarray, **more) -> dict:
    return {"inputs": [{"name": "x", "datatype": datatype, "shape": array.shape, **more}]}


@LIMITED
@given(finite, st.booleans())
def test_json_tensors_are_read_as_they_are_flat_or_nested(pair, flat):
    datatype, array = pair
    data = (array.ravel() if flat else array).tolist()
    found = reader(datatype, array).read(request(tensor(datatype, array, data=data))).request.inputs["x"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@LIMITED
@given(numbers)
def test_binary_tensors_are_read_bit_for_bit(pair):
    datatype, array = pair
    tail = bytes(to_wire(array))
    document = tensor(datatype, array, parameters={"binary_data_size": len(tail)})
    found = reader(datatype, array).read(request(document, tail)).request.inputs["x"]
    assert found.tobytes() == array.tobytes() and found.shape == array.shape


@LIMITED
@given(numbers)
def test_answers_are_json_whatever_the_numbers_and_say_how_many_were_not_finite(pair):
    datatype, array = pair
    document = tensor(datatype, array, parameters={"binary_data_size": array.nbytes})
    call = reader(datatype, array).read(request(document, array.tobytes()))
    answer = write_answer(call, Response({"x": array}, "m", "1", Timing()))
    (output,) = json.loads(bytes(answer.body), parse_constant=lambda c: 1 / 0)["outputs"]
    back = np.array(output["data"], dtype=array.dtype).reshape(output["shape"])
    lost = 0 if array.dtype.kind != "f" else int((~np.isfinite(array)).sum())
    assert output.get("parameters", {}).get("non_finite", 0) == lost
    np.testing.assert_array_equal(back, np.where(np.isfinite(array), array, np.nan) if lost else array)


@LIMITED
@given(st.sampled_from([*ALL, "BYTES"]), st.binary(max_size=200), st.lists(st.integers(-2, 2**40), max_size=3))
def test_no_binary_body_makes_the_decoder_stumble(datatype, tail, shape):
    spec = TensorSpec("x", datatype, (-1,) * len(shape))
    document = {"inputs": [{"name": "x", "datatype": datatype, "shape": shape,
                            "parameters": {"binary_data_size": len(tail)}}]}  # fmt: skip
    try:
        call = RequestReader(Signature((spec,), (spec,))).read(request(document, tail))
    except ForetellError as error:
        assert error.http_status < 500
    else:
        assert call.request.inputs["x"].shape == tuple(shape)


@LIMITED
@given(st.sampled_from(["double", "text", "table", "minilm"]), st.binary(max_size=300), st.integers(-5, 400))
def test_no_raw_body_and_no_header_length_makes_the_decoder_stumble(model, raw, length):
    spec = {"double": ("FP32", -1, 4), "text": ("BYTES", -1, 1), "table": ("INT64", -1), "minilm": ("BYTES", -1)}
    one = TensorSpec("x", spec[model][0], spec[model][1:])
    body = Request(b"POST", b"/", {b"inference-header-content-length": str(length).encode()}, raw)
    try:
        RequestReader(Signature((one,), (one,))).read(body)
    except ForetellError as error:
        assert error.http_status < 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@LIMITED
@given(
    st.fixed_dictionaries(
        {"name": st.just("x"), "datatype": st.sampled_from([*ALL, "BYTES"]), "shape": st.just([2, 2])},
        optional={"data": json_values, "parameters": json_values},
    ),
    st.dictionaries(st.sampled_from(["id", "outputs", "parameters"]), json_values),
)
def test_no_document_makes_the_decoder_stumble(given_tensor, more):
    spec = TensorSpec("x", given_tensor["datatype"], (-1, 2))
    raw = json.dumps({"inputs": [given_tensor]} | more).encode("utf-8", "surrogatepass")
    try:
        RequestReader(Signature((spec,), (spec,))).read(Request(b"POST", b"/", {}, raw))
    except ForetellError as error:
        assert error.http_status < 500 or error.http_status == 501


FRAGMENTS = st.sampled_from([
    b"GET /v2 HTTP/1.1\r\n", b"POST /v2/models/double/infer HTTP/1.1\r\n", b"Content-Length: 5\r\n", b"\r\n",
    b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"Expect: 100-continue\r\n",
    b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: x\r\n", b"Content-Encoding: gzip\r\n", b"{}",
    b"Inference-Header-Content-Length: 3\r\n", b"Content-Length: 70000\r\n\r\n" + b"z" * 70_000, b"HEAD * HTTP/1.1\r\n",
    b"GET http:///%ff?%00 HTTP/1.0\r\n",
])  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(FRAGMENTS | st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 200), max_size=5))
def test_no_bytes_on_the_wire_make_the_server_fail(shared: Live, parts, cuts):
    raw = b"".join(parts)
    with shared.connect() as sock:
        sock.settimeout(0.03)
        answer = b""
        try:
            for cut in cuts:
                sock.sendall(raw[:cut])
                raw = raw[cut:]
            sock.sendall(raw)
            while part := sock.recv(65536):
                answer += part
        except (TimeoutError, ConnectionError):
            pass
    assert b"HTTP/1.1 500" not in answer
    assert b"200 OK" in shared.send(b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n")
