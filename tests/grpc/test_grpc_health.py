"""The standard gRPC health service, asked with the stubs of grpcio-health-checking."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foretell.testing import FakePlane

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def status(channel: grpc.aio.Channel, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_a_server_whose_models_answer_is_serving(channel):
    assert await status(channel) == SERVING
    assert await status(channel, "inference.GRPCInferenceService") == SERVING


async def test_a_model_that_cannot_answer_makes_the_server_and_itself_not_serving(channel, plane: FakePlane):
    plane.served[0].ready = False
    assert await status(channel) == NOT_SERVING
    assert await status(channel, "digits@1") == NOT_SERVING
    assert await status(channel, "text") == SERVING


async def test_an_unknown_service_is_not_found(channel):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await status(channel, "nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_hears_of_changes_and_of_the_drain(server, channel, plane: FakePlane):
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="digits@1"))
    assert (await watch.read()).status == SERVING
    plane.served[0].ready = False
    assert (await watch.read()).status == NOT_SERVING
    plane.served[0].ready = True
    assert (await watch.read()).status == SERVING
    draining = asyncio.create_task(server.drain(2.0))
    assert (await watch.read()).status == NOT_SERVING
    await draining


async def test_a_watcher_of_an_unknown_service_is_told_so_and_may_keep_watching(channel):
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="later"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()
