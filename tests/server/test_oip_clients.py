"""tritonclient and the kserve client, unchanged, against the HTTP entrance."""

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferOutput, InferRequest, RESTConfig
from tritonclient.utils import InferenceServerException

from tests.server.models import ALL

DTYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16,
    "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip
X = np.array([[1, 2, 3, 4], [5, 6, 7, 8.5]], dtype=np.float32)


@pytest.fixture
def client(shared):
    with triton.InferenceServerClient(shared.address, concurrency=4) as one:
        yield one


def given(name: str, array: np.ndarray, datatype: str, binary: bool) -> list[triton.InferInput]:
    one = triton.InferInput(name, list(array.shape), datatype)
    one.set_data_from_numpy(array, binary_data=binary)
    return [one]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritonclient_infers_in_json_and_binary_both_ways(client, binary_in, binary_out):
    wanted = None if binary_out is None else [triton.InferRequestedOutput("y", binary_data=binary_out)]
    result = client.infer("double", given("x", X, "FP32", binary_in), outputs=wanted, request_id="r7")
    np.testing.assert_array_equal(result.as_numpy("y"), X * 2)
    assert result.get_response()["id"] == "r7"
    assert result.get_response()["model_version"] == "3"
    assert (result.as_numpy("total") is None) == (wanted is not None)


@pytest.mark.parametrize("datatype", ALL)
@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_every_datatype_back_as_it_was(client, datatype, binary):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(DTYPES[datatype])
    if datatype == "FP16" and not binary:
        pytest.skip("tritonclient sends FP16 in binary only")
    wanted = [triton.InferRequestedOutput("x", binary_data=binary)]
    result = client.infer(f"echo-{datatype}", given("x", array, datatype, binary), outputs=wanted)
    assert result.as_numpy("x").dtype == array.dtype
    np.testing.assert_array_equal(result.as_numpy("x"), array)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_sends_and_gets_bytes(client, binary):
    texts = np.array([["héllo"], [""], ["日本"]], dtype=object)
    result = client.infer(
        "text", given("t", texts, "BYTES", binary), outputs=[triton.InferRequestedOutput("t", binary_data=binary)]
    )
    found = [t.decode() if isinstance(t, bytes) else t for t in result.as_numpy("t").ravel()]
    assert found == ["héllo", "", "日本"]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_compresses_both_ways(client, algorithm):
    rows = np.tile(X, (200, 1))
    result = client.infer(
        "double", given("x", rows, "FP32", True), request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )  # fmt: skip
    np.testing.assert_array_equal(result.as_numpy("y"), rows * 2)


def test_tritonclient_asks_for_classes(client):
    result = client.infer(
        "double", given("x", X, "FP32", True), outputs=[triton.InferRequestedOutput("y", class_count=2)]
    )
    assert result.as_numpy("y").tolist() == [[b"8.000000:3", b"6.000000:2"], [b"17.000000:3", b"14.000000:2"]]


def test_tritonclient_reads_health_and_metadata(client):
    assert client.is_server_live()
    assert not client.is_server_ready()  # one of the models is loading
    assert client.is_model_ready("double") and client.is_model_ready("double", "1")
    assert not client.is_model_ready("loading")
    assert client.get_server_metadata()["name"] == "foretell"
    metadata = client.get_model_metadata("double")
    assert metadata["versions"] == ["1", "3"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    config = client.get_model_config("double", "1")
    assert config["max_batch_size"] == 64
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]


@pytest.mark.parametrize(
    ("name", "version", "answers"),
    [("double", "", "3"), ("double", "1", "1"), ("double@1", "", "1"), ("double@live", "", "3")],
)
def test_versions_and_aliases_are_reached_by_path_and_by_name(client, name, version, answers):
    result = client.infer(name, given("x", X, "FP32", True), model_version=version)
    assert result.get_response()["model_version"] == answers


def test_tritonclient_loads_and_unloads(serve):
    with triton.InferenceServerClient(serve().address) as client:
        client.unload_model("double")
        states = {e["name"]: e["state"] for e in client.get_model_repository_index()}
        assert states["double"] == "UNAVAILABLE" and states["text"] == "READY"
        with pytest.raises(InferenceServerException, match="no model"):
            client.infer("double", given("x", X, "FP32", True))
        client.load_model("double")
        assert client.is_model_ready("double")


def test_tritonclient_reads_statistics(serve):
    with triton.InferenceServerClient(serve().address) as client:
        client.infer("double", given("x", X, "FP32", True))
        (found,) = client.get_inference_statistics("double")["model_stats"]
        assert (found["version"], found["inference_count"], found["execution_count"]) == ("3", 2, 1)
        assert found["inference_stats"]["success"]["count"] == 1
        assert len(client.get_inference_statistics()["model_stats"]) > 5


def test_timeout_and_priority_reach_the_plane(serve):
    live = serve()
    with triton.InferenceServerClient(live.address) as client:
        client.infer("double", given("x", X, "FP32", True), priority=7, timeout=5_000_000)
        assert live.plane.requests[0].priority == 7
        with pytest.raises(InferenceServerException, match="deadline") as caught:
            client.infer("slow", given("x", X, "FP32", True), timeout=50_000)
        assert caught.value.status() == "504"


def test_tritonclient_sends_many_at_once(client):
    pending = [client.async_infer("slow", given("x", X, "FP32", True)) for _ in range(4)]
    for one in pending:
        np.testing.assert_array_equal(one.get_result().as_numpy("y"), X * 2)


def test_tritonclient_raises_with_our_message(client):
    with pytest.raises(InferenceServerException, match="expects FP32"):
        client.infer("double", given("x", X.astype(np.float64), "FP64", True))


# -- kserve


@pytest.fixture
async def kserve():
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=10))
    yield client
    await client.close()


@pytest.mark.parametrize("binary", [True, False])
async def test_the_kserve_client_infers(shared, kserve, binary):
    one = InferInput("x", list(X.shape), "FP32")
    one.set_data_from_numpy(X, binary_data=binary)
    wanted = [InferOutput("y", [2, 4], "FP32", parameters={"binary_data": binary})]
    request = InferRequest("double", [one], request_id="k1", request_outputs=wanted)
    result = await kserve.infer(shared.url, request, model_name="double")
    np.testing.assert_array_equal(result.outputs[0].as_numpy(), X * 2)
    assert (result.id, result.model_name) == ("k1", "double")


async def test_the_kserve_client_reads_health_and_errors(shared, kserve):
    assert await kserve.is_server_live(shared.url)
    assert await kserve.is_model_ready(shared.url, "double")
    with pytest.raises(httpx.HTTPStatusError, match="no model"):
        await kserve.infer(shared.url, InferRequest("nobody", [InferInput("x", [1], "FP32", [1.0])]), "nobody")
