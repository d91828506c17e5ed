"""tritonclient[grpc], unchanged, against the gRPC entrance."""

import asyncio

import numpy as np
import pytest
import tritonclient.grpc as blocking
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from foretell.plane.info import BatchStatistics
from foretell.testing import FakePlane
from tests.grpc.models import pixels, tensor


async def test_the_server_is_live_and_ready(client):
    assert await client.is_server_live()
    assert await client.is_server_ready()


async def test_a_server_with_a_loading_model_is_live_but_not_ready(client, plane: FakePlane):
    plane.served[0].ready = False
    assert await client.is_server_live()
    assert not await client.is_server_ready()
    assert not await client.is_model_ready("digits", "1")
    assert await client.is_model_ready("digits", "2")


async def test_server_metadata_names_the_product_its_version_and_extensions(client):
    metadata = await client.get_server_metadata()
    assert (metadata.name, metadata.version) == ("foretell", "9.9")
    assert {"model_repository", "statistics", "model_configuration"} <= set(metadata.extensions)


async def test_model_metadata_states_versions_and_tensors(client):
    metadata = await client.get_model_metadata("digits", "1")
    assert metadata.name == "digits"
    assert list(metadata.versions) == ["1", "2"]
    (given,) = metadata.inputs
    assert (given.name, given.datatype, list(given.shape)) == ("pixels", "FP32", [-1, 4])
    assert [(o.name, o.datatype, list(o.shape)) for o in metadata.outputs] == [
        ("total", "FP32", [-1]),
        ("label", "INT64", [-1]),
    ]


async def test_model_config_leaves_the_row_axis_out_where_requests_are_joined(client):
    config = (await client.get_model_config("digits")).config
    assert config.name == "digits"
    assert config.max_batch_size == 64
    assert [list(t.dims) for t in config.input] == [[4]]
    assert [t.data_type for t in config.output] == [11, 9]
    text = (await client.get_model_config("text")).config
    assert text.input[0].data_type == 13


async def test_infer_answers_every_output(client):
    result = await client.infer("digits", pixels([1, 2, 3, 4], [9, 0, 0, 0]), request_id="r-7")
    assert result.as_numpy("total").tolist() == [10.0, 9.0]
    assert result.as_numpy("label").tolist() == [3, 0]
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("digits", "2", "r-7")


async def test_the_blocking_client_gets_the_same_answer(server):
    def ask() -> list[float]:
        with blocking.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            return client.infer("digits", pixels()).as_numpy("total").tolist()

    assert await asyncio.to_thread(ask) == [10.0]


async def test_a_version_field_or_an_alias_in_the_name_chooses_the_version(client):
    by_version = await client.infer("negated", pixels(), model_version="1")
    by_alias = await client.infer("negated@live", pixels())
    default = await client.infer("negated", pixels())
    assert by_version.as_numpy("total").tolist() == by_alias.as_numpy("total").tolist() == [-10.0]
    assert default.as_numpy("total").tolist() == [10.0]


async def test_only_the_requested_outputs_are_answered_in_the_order_asked(client):
    wanted = [triton.InferRequestedOutput("label"), triton.InferRequestedOutput("total")]
    result = await client.infer("digits", pixels(), outputs=wanted)
    assert [o.name for o in result.get_response().outputs] == ["label", "total"]
    result = await client.infer("digits", pixels(), outputs=wanted[:1])
    assert result.as_numpy("total") is None


async def test_the_best_classes_of_an_output_come_as_scores_and_indexes(client):
    wanted = [triton.InferRequestedOutput("y", class_count=1)]
    array = np.array([[0.5, -1.25], [1, 2]], dtype=np.float16)
    result = await client.infer("half", [tensor("x", array, "FP16")], outputs=wanted)
    assert result.as_numpy("y").tolist() == [[b"1.000000:0"], [b"4.000000:1"]]


async def test_bytes_go_both_ways_untouched(client):
    array = np.array(["héllo".encode(), b"", b"\x00\xff"], dtype=object)
    result = await client.infer("text", [tensor("text", array, "BYTES")])
    assert result.as_numpy("loud").tolist() == ["héllo".encode().upper(), b"", b"\x00\xff"]


async def test_fp16_goes_both_ways(client):
    array = np.array([[0.5, -1.25]], dtype=np.float16)
    result = await client.infer("half", [tensor("x", array, "FP16")])
    doubled = result.as_numpy("y")
    assert doubled.dtype == np.float16
    assert doubled.tolist() == [[1.0, -2.5]]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_compressed_requests_are_read(client, algorithm):
    result = await client.infer("digits", pixels(), compression_algorithm=algorithm)
    assert result.as_numpy("total").tolist() == [10.0]


async def test_priority_timeout_and_sticky_reach_the_plane(client, plane: FakePlane):
    await client.infer("digits", pixels(), priority=3, timeout=5_000_000, parameters={"sticky": "ann"})
    (request,) = plane.requests
    assert (request.priority, request.sticky, request.protocol) == (3, "ann", "grpc")
    loop = asyncio.get_running_loop()
    assert request.deadline is not None
    assert 0 < request.deadline - loop.time() <= 5


async def test_the_earlier_of_the_calls_deadline_and_the_timeout_parameter_holds(client, plane: FakePlane):
    await client.infer("digits", pixels(), client_timeout=50, timeout=3_000_000)
    await client.infer("digits", pixels(), client_timeout=4, timeout=60_000_000)
    await client.infer("digits", pixels())
    now = asyncio.get_running_loop().time()
    first, second, none = (request.deadline for request in plane.requests)
    assert first is not None and first <= now + 3
    assert second is not None and second <= now + 5, "gRPC rounds deadlines up on the wire"
    assert none is None


async def test_the_timeout_parameter_ends_a_slow_request(client):
    with pytest.raises(InferenceServerException) as caught:
        await client.infer("slow", pixels(), timeout=20_000)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


async def test_the_calls_own_deadline_ends_a_slow_request(client, plane: FakePlane):
    with pytest.raises(InferenceServerException) as caught:
        await client.infer("slow", pixels(), client_timeout=0.1)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


async def test_a_client_that_goes_away_cancels_its_request(client, plane: FakePlane):
    asking = asyncio.create_task(client.infer("slow", pixels()))
    while not plane.requests:
        await asyncio.sleep(0.01)
    asking.cancel()
    while not plane.cancelled:
        await asyncio.sleep(0.01)
    assert plane.cancelled == 1
    assert (await client.infer("digits", pixels())).as_numpy("total").tolist() == [10.0]


async def test_the_repository_is_listed_unloaded_and_loaded(client, plane: FakePlane):
    await client.unload_model("negated")
    index = (await client.get_model_repository_index()).models
    states = {(m.name, m.version): m.state for m in index}
    assert states["negated", "1"] == "UNAVAILABLE"
    assert states["digits", "2"] == "READY"
    with pytest.raises(InferenceServerException, match='no model "negated"'):
        await client.infer("negated", pixels())
    await client.load_model("negated")
    assert (await client.infer("negated", pixels())).as_numpy("total").tolist() == [10.0]


async def test_loading_with_another_configuration_is_refused_and_says_where_it_belongs(client):
    with pytest.raises(InferenceServerException, match=r"foretell\.toml") as caught:
        await client.load_model("digits", config='{"max_batch_size": 1}')
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


async def test_loading_an_unknown_model_is_not_found(client):
    with pytest.raises(InferenceServerException) as caught:
        await client.load_model("nothing")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


async def test_statistics_count_requests_rows_and_time(client, plane: FakePlane):
    for _ in range(3):
        await client.infer("digits", pixels([1, 1, 1, 1], [2, 2, 2, 2]))
    with pytest.raises(InferenceServerException):
        await client.infer("poison", pixels())
    counts = plane.statistics()[1]
    counts.batches.append(BatchStatistics(rows=2, count=3, compute_s=0.5))
    (stats,) = (await client.get_inference_statistics("digits")).model_stats
    assert (stats.name, stats.version) == ("digits", "2")
    assert (stats.inference_count, stats.execution_count) == (6, 3)
    assert stats.inference_stats.success.count == 3
    assert stats.inference_stats.success.ns > 0
    assert stats.last_inference > 0
    assert (stats.batch_stats[0].batch_size, stats.batch_stats[0].compute_infer.count) == (2, 3)
    assert stats.batch_stats[0].compute_infer.ns == 500_000_000
    (poison,) = (await client.get_inference_statistics("poison")).model_stats
    assert poison.inference_stats.fail.count == 1
    assert len((await client.get_inference_statistics()).model_stats) == len(plane.served)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("get_system_shared_memory_status", ()),
        ("register_system_shared_memory", ("region", "/key", 16)),
        ("get_cuda_shared_memory_status", ()),
        ("get_trace_settings", ()),
        ("get_log_settings", ()),
    ],
)
async def test_what_only_other_servers_do_is_refused_with_a_reason(client, method, arguments):
    with pytest.raises(InferenceServerException) as caught:
        await getattr(client, method)(*arguments)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert "not served" in caught.value.message() or "cannot be set" in caught.value.message()
