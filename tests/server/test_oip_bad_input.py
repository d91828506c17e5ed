"""Every bad input over HTTP gets the right status and an answer that names the field and the remedy."""

import json

import pytest

from tests.server.models import body

URL = "/v2/models/double/infer"


def two(age: dict | None = None, name: dict | None = None, extra: list | None = None) -> dict:
    age = {"name": "age", "datatype": "INT64", "shape": [2], "data": [1, 2]} | (age or {})
    name = {"name": "name", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]} | (name or {})
    return {"inputs": [age, name, *(extra or [])]}


@pytest.mark.parametrize(
    ("target", "value", "status", "words"),
    [
        ("/v2/models/doubel/infer", body(), 404, ['"doubel"', '"double"']),
        ("/v2/models/double/versions/9/infer", body(), 404, ["9"]),
        ("/v2/models/double@gone/infer", body(), 404, ['"gone"']),
        ("/v2/models/double@3/versions/1/infer", body(), 400, ["disagree"]),
        ("/v2/models/double/versions/live/infer", body(), 404, ["double@alias"]),
        ("/v2/models/dou%20ble/infer", body(), 400, ["name@alias"]),
        ("/v2/modles/double/infer", body(), 404, ["no route"]),
        (URL, body(name="z"), 400, ['unknown input "z"', "$.inputs[0].name", "Known: x"]),
        (URL, body(datatype="INT64"), 400, ["datatype INT64", "expects FP32", "$.inputs[0].datatype"]),
        (URL, body(datatype="FP31"), 400, ['unknown datatype "FP31"', "FP32"]),
        (URL, body(shape=[1, 5], data=[1] * 5), 400, ["[1, 5]", "[-1, 4]"]),
        (URL, body(shape=[4]), 400, ["[4]", "[-1, 4]"]),
        (URL, body(shape=[0, 4], data=[]), 400, ["no rows"]),
        (URL, body(shape=[-1, 4]), 400, ["negative", "$.inputs[0].shape"]),
        (URL, body(shape=[2**40, 2**40]), 400, ["needs"]),
        (URL, body(shape=["4"]), 400, ["$.inputs[0].shape[0]"]),
        (URL, body(data=[1, 2, 3]), 400, ["needs 4", "has 3", "$.inputs[0].data"]),
        (URL, body(data=[[1, 2, 3]]), 400, ["a list of 3", "$.inputs[0].data[0]"]),
        (URL, body(data=[[[1, 2, 3, 4]]]), 400, ["nested 3 deep"]),
        (URL, body(data=7), 400, ["nested 0 deep"]),
        (URL, body(data=[1, "2", 3, 4]), 400, ["got `str`", "$.inputs[0].data[1]"]),
        (URL, body(data=[1, None, 3, 4]), 400, ["got `null`", "$.inputs[0].data[1]"]),
        (URL, body(data=[1, 1e300, 3, 4]), 400, ["does not fit FP32"]),
        (URL, {"inputs": []}, 400, ['input "x" is missing']),
        (URL, {}, 400, ["inputs"]),
        (URL, [], 400, ["object"]),
        (URL, {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]}, 400, ["no data"]),
        (URL, {"inputs": body()["inputs"] * 2}, 400, ["twice", "$.inputs[1].name"]),
        (URL, body() | {"input": 1}, 400, ["`input`"]),
        (URL, body() | {"outputs": [{"name": "yy"}]}, 400, ['unknown output "yy"', "$.outputs[0].name", '"y"']),
        (URL, body() | {"outputs": [{"name": "y", "parameters": {"binary_dat": True}}]}, 400, ["binary_data"]),
        (URL, body() | {"parameters": {"timeuot": 1}}, 400, ["timeuot", '"timeout"']),
        (URL, body() | {"parameters": {"timeout": "soon"}}, 400, ["$.parameters.timeout", "microseconds"]),
        (URL, body() | {"parameters": {"sequence_id": 4}}, 501, ["sequence"]),
        ("/v2/models/table/infer", two(extra=[{"name": "y", "datatype": "INT64", "shape": [2], "data": [1, 2]}]),
         400, ['unknown input "y"', "$.inputs[2].name"]),
        ("/v2/models/table/infer", {"inputs": two()["inputs"][:1]}, 400, ['"name" is missing', "BYTES"]),
        ("/v2/models/table/infer", two(name={"shape": [3], "data": ["a", "b", "c"]}), 400, ["3 rows", "2"]),
        ("/v2/models/table/infer", two(age={"data": [1, 1.5]}), 400, ["got `float`", "$.inputs[0].data[1]"]),
        ("/v2/models/table/infer", two(age={"data": [1, 2**63]}), 400, ["INT64", "$.inputs[0].data"]),
        ("/v2/models/table/infer", two(name={"data": ["a", 1]}), 400, ["got `int`", "$.inputs[1].data[1]"]),
        ("/v2/models/echo-UINT8/infer", body(datatype="UINT8", shape=[1, 1], data=[256]), 400, ["<= 255"]),
        ("/v2/models/echo-INT8/infer", body(datatype="INT8", shape=[1, 1], data=[-129]), 400, [">= -128"]),
        ("/v2/models/echo-UINT64/infer", body(datatype="UINT64", shape=[1, 1], data=[-1]), 400, [">= 0"]),
        ("/v2/models/echo-UINT64/infer", body(datatype="UINT64", shape=[1, 1], data=[2**64]), 400, ["UINT64"]),
        ("/v2/models/echo-BOOL/infer", body(datatype="BOOL", shape=[1, 1], data=[1]), 400, ["`bool`"]),
        ("/v2/models/echo-FP16/infer", body(datatype="FP16", shape=[1, 1], data=[1e9]), 400, ["FP16"]),
        ("/v2/models/boom/infer", body(), 500, ["boom", "ValueError"]),
        ("/v2/models/loading/infer", body(), 503, ["loading"]),
        ("/v2/models/binary/infer", body(), 400, ["not UTF-8", "binary_data"]),
        ("/v2/repository/models/double@1/unload", {}, 400, ['"double"']),
        ("/v2/repository/models/double/load", {"parameters": {"config": "{}"}}, 400, ["foretell add"]),
        ("/v2/repository/index", {"ready": 3}, 400, ["$.ready"]),
    ],
)  # fmt: skip
async def test_the_answer_names_the_field_and_the_remedy(http, target, value, status, words):
    response = await http.post(target, value)
    error = json.loads(response.body)["error"]
    assert response.status == status, error
    for word in words:
        assert word in error


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", ["empty"]),
        (b"{", ["not JSON"]),
        (b'{"inputs": [NaN]}', ["not JSON"]),
        (b'{"inputs":[{"name":"\xff","datatype":"FP32","shape":[1]}]}', ["UTF-8"]),
        (b"[" * 500_000, ["object"]),
        (b'{"inputs":' + b"[" * 500_000, ["inputs"]),
        (b'{"id":' + b'{"a":' * 200_000, ["id"]),
        (b'{"parameters":' + b'{"a":' * 200_000, ["nested too deeply"]),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":' + b"[" * 300_000, ["nested too deeply"]),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[' + b"1," * 2_000_000 + b"1]}]}",
         ["needs 4", "has 2000001"]),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,' + b"9" * 100_000 + b"]}]}",
         ["out of range"]),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":' + b"[1," * 40 + b"1" + b"]" * 40 + b"}]}", ["shape"]),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[' + b"1," * 100 + b'1],"data":[1]}]}', ["shape"]),
    ],
)  # fmt: skip
async def test_documents_that_are_no_requests_are_refused_in_bounded_time(http, raw, words):
    response = await http.request("POST", URL, raw)
    error = json.loads(response.body)["error"]
    assert response.status == 400
    for word in words:
        assert word in error


def binary(size: int, datatype: str = "FP32", shape: tuple = (1, 4), **tensor) -> dict:
    given = {"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
    return {"inputs": [given | tensor]}


@pytest.mark.parametrize(
    ("document", "tail", "length", "words"),
    [
        (binary(16), bytes(15), None, ["claims 16", "15 are left"]),
        (binary(16), bytes(17), None, ["1 bytes follow"]),
        (binary(12), bytes(12), None, ["needs 16 bytes"]),
        (binary(-1), bytes(16), None, ["binary_data_size"]),
        (binary(2**70), bytes(16), None, ["claims"]),
        (binary("16"), bytes(16), None, ["binary_data_size"]),
        (binary(16, data=[1]), bytes(16), None, ["both"]),
        (binary(16), bytes(16), b"", ["Inference-Header-Content-Length"]),
        (binary(16), bytes(16), b"-5", ["not a byte count"]),
        (binary(16), bytes(16), b"abc", ["not a byte count"]),
        (binary(16), bytes(16), b"9" * 30, ["not a byte count"]),
        (binary(16), bytes(16), b"5000", ["5000", "the body has"]),
        (binary(16), bytes(16), b"7", ["not JSON"]),
        (binary(16, parameters={"shared_memory_region": "r"}), b"", None, ["shared memory"]),
    ],
)
async def test_binary_bodies_that_lie_about_their_lengths_are_refused(http, document, tail, length, words):
    raw = json.dumps(document).encode()
    length = str(len(raw)) if length is None else length.decode()
    headers = {"Inference-Header-Content-Length": length} if length else {}
    response = await http.request("POST", URL, raw + tail, headers)
    assert response.status in (400, 501)
    for word in words:
        assert word in json.loads(response.body)["error"]


async def test_a_binary_input_without_the_header_is_refused(http):
    response = await http.post(URL, binary(16))
    assert response.status == 400
    assert b"Inference-Header-Content-Length is missing" in response.body


@pytest.mark.parametrize("tail", [b"\x09\x00\x00\x00abc", b"\x03\x00\x00\x00abc\x01", b"\xff\xff\xff\xffabc", b"ab"])
async def test_bytes_elements_whose_lengths_lie_are_refused(http, tail):
    document = {"inputs": [{"name": "t", "datatype": "BYTES", "shape": [1, 1],
                            "parameters": {"binary_data_size": len(tail)}}]}  # fmt: skip
    raw = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(raw))}
    response = await http.request("POST", "/v2/models/text/infer", raw + tail, headers)
    assert response.status == 400
    assert b'input \\"t\\"' in response.body


async def test_bytes_that_are_not_utf8_travel_in_binary_and_are_refused_as_json_output(http):
    tail = b"\x02\x00\x00\x00\xff\xfe"
    document = {"inputs": [{"name": "t", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 6}}]}
    for wanted, status in ((True, 200), (False, 400)):
        raw = json.dumps(document | {"parameters": {"binary_data_output": wanted}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(raw))}
        response = await http.request("POST", "/v2/models/text/infer", raw + tail, headers)
        assert response.status == status
    assert b"not UTF-8" in response.body


@pytest.mark.parametrize(("raw", "words"), [(bytes(15), b"no multiple of the 16"), (b"", b"no rows")])
async def test_a_raw_request_of_an_odd_size_is_refused(http, raw, words):
    response = await http.request("POST", URL, raw, {"Inference-Header-Content-Length": "0"})
    assert response.status == 400
    assert words in response.body


async def test_a_raw_request_to_a_model_with_two_inputs_is_refused(http):
    response = await http.request("POST", "/v2/models/table/infer", b"1", {"Inference-Header-Content-Length": "0"})
    assert response.status == 400
    assert b"one input" in response.body


async def test_a_wrong_method_answers_405_and_lists_the_right_ones(http):
    response = await http.get(URL)
    assert response.status == 405
    assert b"allow: POST\r\n" in response.headers


async def test_an_unexpected_error_answers_500_and_leaves_the_traceback_in_the_log(http, caplog):
    response = await http.post("/v2/models/crash/infer", body())
    error = json.loads(response.body)["error"]
    assert response.status == 500
    assert "a bug of ours" not in error
    assert error.split()[-1] in caplog.text and "ZeroDivisionError" in caplog.text


async def test_json_over_its_own_limit_is_sent_to_the_binary_form(http):
    response = await http.request("POST", URL, b'{"inputs":[' + bytes(17 * 2**20))
    assert response.status == 413 and b"in binary" in bytes(response.body)


async def test_nan_in_json_input_is_not_json(http):
    response = await http.request(
        "POST", URL, b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[NaN,1,1,1]}]}'
    )
    assert response.status == 400
