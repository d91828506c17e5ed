"""What operators read: deployments, models, routing, health, metrics; and the shared details of answers."""

import json

import pytest

from foretell.core.routing import Route, RoutingTable, Target
from foretell.server.app import App
from foretell.testing import FakeModel, FakePlane, client
from tests.server.models import Signature, X, Y, body, double, models


def app(**more) -> tuple[FakePlane, App]:
    plane = FakePlane(*models()[:3])
    return plane, App(plane, **more)


async def test_deployments_show_models_readiness_and_counts():
    _, one = app()
    await client(one).post("/v2/models/double/infer", body())
    views = json.loads((await client(one).get("/admin/deployments")).body)
    by = {(v["model"]["name"], v["model"]["version"]): v for v in views}
    assert by["double", "3"]["statistics"]["inferences"] == 1
    assert by["double", "3"]["ready"] is True


async def test_the_routing_table_is_shown():
    table = RoutingTable({"double": Route((Target("1", 0.9), Target("3", 0.1)))})
    answer = json.loads((await client(app(routing=lambda: table)[1]).get("/admin/routing")).body)
    assert answer["routes"]["double"]["targets"][1] == {"version": "3", "weight": 0.1}


async def test_metrics_are_what_was_handed_in():
    answer = await client(app(metrics=lambda: (b"up 1\n", "text/plain"))[1]).get("/metrics")
    assert (answer.body, answer.content_type) == (b"up 1\n", b"text/plain")


@pytest.mark.parametrize("path", ["/healthz", "/v2/health/ready"])
async def test_health_means_can_answer(path):
    assert (await client(App(FakePlane(FakeModel("a", Signature(X, Y), double)))).get(path)).status == 200
    loading = FakePlane(FakeModel("a", Signature(X, Y), double, ready=False))
    assert (await client(App(loading)).get(path)).status == 503


async def test_an_answer_tells_its_version_and_where_the_time_went(http):
    answer = await http.post("/v2/models/double/infer", body())
    assert b"foretell-version: 3\r\n" in answer.headers
    assert b"server-timing: queue;dur=" in answer.headers


async def test_nan_and_infinity_become_null_and_are_counted(http):
    answer = await http.post("/v2/models/odd/infer", body())
    (output,) = json.loads(bytes(answer.body))["outputs"]
    assert output["data"] == [1.0, None, None]
    assert output["parameters"] == {"non_finite": 2}


async def test_the_callers_id_and_sticky_key_reach_the_plane():
    plane, one = app()
    headers = {"X-Request-Id": "trace-1", "Foretell-Sticky": "anna"}
    await client(one).request("POST", "/v2/models/double/infer", json.dumps(body()).encode(), headers)
    assert (plane.requests[0].id, plane.requests[0].sticky) == ("trace-1", "anna")


@pytest.mark.parametrize("raw", [b"hello", b"\xff\x00"])
async def test_a_raw_body_is_the_one_input_whole(http, raw):
    answer = await http.request("POST", "/v2/models/text/infer", raw, {"Inference-Header-Content-Length": "0"})
    assert answer.status == 200
    assert bytes(answer.body).endswith(len(raw).to_bytes(4, "little") + raw)


async def test_a_raw_body_of_numbers_gets_its_rows_from_its_size(http):
    answer = await http.request("POST", "/v2/models/double/infer", bytes(48), {"Inference-Header-Content-Length": "0"})
    assert b'"shape":[3,4]' in bytes(answer.body)


async def test_a_path_not_known_names_the_nearest(http):
    answer = await http.get("/v2/health/redy")
    assert answer.status == 404 and b"/v2/health/ready" in bytes(answer.body)
