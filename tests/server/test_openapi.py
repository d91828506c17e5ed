"""The OpenAPI document is true: schemathesis drives every operation of a live server by it."""

import asyncio
import json

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from foretell.server.app import App
from foretell.server.http import HttpSettings
from foretell.testing import FakePlane, client
from tests.server.conftest import Live


@pytest.fixture(scope="module")
def driven():
    one = Live(HttpSettings())
    one.plane.served = [model for model in one.plane.served if model.ready]
    yield one
    one.close()


schema = schemathesis.openapi.from_dict(
    json.loads(asyncio.run(client(App(FakePlane(), version="test")).get("/openapi.json")).body)
)


@schema.parametrize()
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_every_operation_answers_as_the_document_says(case, driven):
    # What fits the document may still not fit the model, so a 400 is right for data the schema allows.
    case.call_and_validate(base_url=driven.url, timeout=5, excluded_checks=[positive_data_acceptance])


async def test_the_document_lists_every_route_but_its_own(http):
    document = json.loads((await http.get("/openapi.json")).body)
    assert "/v2/models/{model}/versions/{version}/infer" in document["paths"]
    assert {"/healthz", "/metrics", "/v1/embeddings", "/admin/deployments"} <= set(document["paths"])


async def test_the_docs_page_needs_nothing_from_elsewhere(http):
    page = bytes((await http.get("/docs")).body)
    assert b"openapi.json" in page
    assert b"http://" not in page and b"https://" not in page and b"src=" not in page
