"""The kserve gRPC client, unchanged, against the gRPC entrance."""

import grpc
import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2, grpc_predict_v2_pb2_grpc


@pytest.fixture
async def kserve(server):
    client = InferenceGRPCClient(f"127.0.0.1:{server.port}", retries=0)
    yield client
    await client.close()


def request(model: str, name: str, array: np.ndarray, datatype: str, binary: bool) -> InferRequest:
    given = InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[given], request_id="k-1")


async def test_the_server_and_its_models_are_ready(kserve):
    assert await kserve.is_server_live()
    assert await kserve.is_server_ready()
    assert await kserve.is_model_ready("digits")


@pytest.mark.parametrize("binary", [True, False], ids=["raw contents", "typed contents"])
async def test_numbers_are_inferred(kserve, binary):
    array = np.array([[1, 2, 3, 4]], dtype=np.float32)
    answer = await kserve.infer(request("digits", "pixels", array, "FP32", binary))
    assert (answer.id, answer.model_name, answer.model_version) == ("k-1", "digits", "2")
    assert answer.outputs[0].as_numpy().tolist() == [10.0]
    assert answer.outputs[1].as_numpy().tolist() == [3]


@pytest.mark.parametrize("binary", [True, False], ids=["raw contents", "typed contents"])
async def test_bytes_are_inferred(kserve, binary):
    array = np.array([b"abc", "ü".encode()], dtype=object)
    answer = await kserve.infer(request("text", "text", array, "BYTES", binary))
    assert [_bytes(item) for item in answer.outputs[0].as_numpy()] == [b"ABC", "ü".encode().upper()]


async def test_fp16_is_inferred(kserve):
    array = np.array([[0.5, 1.5]], dtype=np.float16)
    answer = await kserve.infer(request("half", "x", array, "FP16", True))
    assert answer.outputs[0].as_numpy().tolist() == [[1.0, 3.0]]


async def test_an_unknown_model_is_not_found(kserve):
    with pytest.raises(grpc.RpcError) as caught:
        await kserve.infer(request("nothing", "x", np.zeros((1, 1), np.float32), "FP32", True))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_models_are_unloaded_and_loaded_in_kserves_own_fields(channel):
    stub = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(channel)
    gone = await stub.RepositoryModelUnload(grpc_predict_v2_pb2.RepositoryModelUnloadRequest(model_name="digits"))
    assert (gone.model_name, gone.isUnloaded) == ("digits", True)
    back = await stub.RepositoryModelLoad(grpc_predict_v2_pb2.RepositoryModelLoadRequest(model_name="digits"))
    assert (back.model_name, back.isLoaded) == ("digits", True)


def _bytes(item: bytes | str) -> bytes:
    return item.encode() if isinstance(item, str) else item
