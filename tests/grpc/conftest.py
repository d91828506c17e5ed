"""A gRPC entrance over a FakePlane, in the test's own loop, and the unchanged clients that speak to it."""

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton

from foretell.server.grpc import GrpcServer, GrpcSettings
from foretell.server.grpc_aio import GrpcioTransport
from foretell.server.grpc_lean import LeanTransport
from foretell.testing import FakeModel, FakePlane
from tests.grpc.models import DIGITS, HALF, TEXT, bug, digits, fail, loud, negated


@pytest.fixture
def plane() -> FakePlane:
    return FakePlane(
        FakeModel("digits", DIGITS, digits, version="1"),
        FakeModel("digits", DIGITS, digits, version="2", description="sums pixels"),
        FakeModel("negated", DIGITS, negated, version="1", aliases=("live",)),
        FakeModel("negated", DIGITS, digits, version="2"),
        FakeModel("text", TEXT, loud),
        FakeModel("half", HALF, lambda inputs: {"y": inputs["x"] * np.float16(2)}),
        FakeModel("slow", DIGITS, digits, delay_s=30.0),
        FakeModel("poison", DIGITS, fail),
        FakeModel("bug", DIGITS, bug),
    )


@pytest.fixture
def settings() -> GrpcSettings:
    return GrpcSettings(max_body_bytes=2**20, stream_window=4)


@pytest.fixture(params=[LeanTransport, GrpcioTransport])
def transport(request):
    """Both transports keep the same promises: every test runs on each."""
    return request.param


@pytest.fixture
async def server(plane, settings, transport):
    server = GrpcServer(plane, settings, "9.9", transport)
    server.port = await server.start("127.0.0.1", 0)
    yield server
    await server.drain(0)


@pytest.fixture
async def client(server):
    async with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


@pytest.fixture
async def channel(server):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
