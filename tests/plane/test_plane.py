"""The one door: routes, swaps, caches, observes."""

import asyncio

import pytest

from foretell.core.errors import InvalidInput, NotFound
from foretell.core.reference import Reference
from foretell.core.request import Request
from foretell.core.routing import Route, RoutingTable, Target
from foretell.core.settings import CacheSettings

TIMES = "def predict(x):\n    return x * {0}\n"


async def test_a_request_is_routed_by_name_alias_and_version(bench):
    await bench.deploy(TIMES.format(1), version="1")
    await bench.deploy(TIMES.format(2), version="2")
    bench.plane.route(RoutingTable({"m": Route((Target("1"),)), "m@next": Route((Target("2"),))}))
    assert await bench.answer(5.0) == 5.0
    assert await bench.answer(5.0, reference="m@next") == 10.0
    assert await bench.answer(5.0, reference="m@2") == 10.0


@pytest.mark.parametrize(
    ("reference", "said"),
    [("n", 'no model "n"'), ("m@7", "in service: 1"), ("m@old", 'no model "m@old"')],
)
async def test_what_is_not_served_is_named_with_what_is(bench, reference, said):
    await bench.deploy(TIMES.format(1))
    with pytest.raises(NotFound, match=said):
        await bench.answer(1.0, reference=reference)


async def test_weights_split_the_traffic_and_a_sticky_key_stays_with_one_version(bench):
    await bench.deploy(TIMES.format(1), version="1")
    await bench.deploy(TIMES.format(2), version="2")
    bench.plane.route(RoutingTable({"m": Route((Target("1", 0.5), Target("2", 0.5)))}))
    assert {await bench.answer(1.0) for _ in range(60)} == {1.0, 2.0}

    async def version_for(user: str) -> str:
        import numpy as np

        request = Request({"x": np.ones(1, np.float32)}, 1, sticky=user)
        return (await bench.plane.infer(Reference("m"), request)).version

    for user in ("ann", "bob"):
        assert len({await version_for(user) for _ in range(10)}) == 1


async def test_versions_are_swapped_under_load_without_a_failed_or_wrong_answer(bench):
    await bench.deploy(TIMES.format(1), version="1")
    stop = asyncio.Event()
    answers = 0

    async def client() -> None:
        nonlocal answers
        while not stop.is_set():
            response = await bench.ask(3.0)
            assert response.outputs["y"][0] == 3.0 * int(response.version)
            answers += 1

    clients = [asyncio.ensure_future(client()) for _ in range(8)]
    for version in range(2, 5):
        await bench.deploy(TIMES.format(version), version=str(version))
        await bench.plane.retire("m", str(version - 1))
        await asyncio.sleep(0.05)
    stop.set()
    await asyncio.gather(*clients)
    assert answers > 100
    assert {o.outcome for o in bench.observations} == {"done"}
    assert {o.version for o in bench.observations} == {"1", "2", "3", "4"}


COUNTING = "calls = 0\ndef predict(x):\n    global calls\n    calls += len(x)\n    return x * 0 + calls\n"


async def test_equal_requests_share_one_computation_and_later_ones_the_answer(bench):
    slow = "import time\n" + COUNTING.replace("    return", "    time.sleep(0.05)\n    return")
    deployment = await bench.deploy(slow, cache=CacheSettings(max_bytes=1 << 20))
    assert set(await asyncio.gather(*(bench.answer(1.0) for _ in range(6)))) == {1.0}
    assert await bench.answer(1.0) == 1.0
    assert await bench.answer(2.0) == 2.0
    assert deployment.snapshot().cache_hits == 6
    assert [o.cached for o in bench.observations].count(True) == 6


async def test_the_first_of_equal_requests_may_leave_without_harming_the_others(bench):
    slow = "import time\n" + COUNTING.replace("    return", "    time.sleep(0.1)\n    return")
    await bench.deploy(slow, cache=CacheSettings(max_bytes=1 << 20))
    first, second = (asyncio.ensure_future(bench.answer(1.0)) for _ in range(2))
    await asyncio.sleep(0.02)
    first.cancel()
    assert await second == 1.0


async def test_a_request_equal_to_one_that_was_just_given_up_is_computed_anew(bench):
    slow = "import time\n" + COUNTING.replace("    return", "    time.sleep(0.1)\n    return")
    await bench.deploy(slow, cache=CacheSettings(max_bytes=1 << 20))
    first = asyncio.ensure_future(bench.answer(1.0))
    await asyncio.sleep(0.02)
    first.cancel()
    await asyncio.sleep(0)
    assert await bench.answer(1.0) > 0


async def test_a_version_drains_to_its_end_even_if_nobody_waits_for_that(bench):
    deployment = await bench.deploy("import time\ndef predict(x):\n    time.sleep(0.2)\n    return x\n")
    pending = asyncio.ensure_future(bench.answer(3.0))
    await asyncio.sleep(0.05)
    waiting = bench.plane.retire("m", "1")
    waiting.cancel()
    assert await pending == 3.0
    await bench.plane.close()
    assert deployment.pool.pids() == []


async def test_a_deadline_holds_for_each_of_equal_requests(bench):
    slow = "import time\n" + COUNTING.replace("    return", "    time.sleep(0.3)\n    return")
    await bench.deploy(slow, cache=CacheSettings(max_bytes=1 << 20))
    patient, hasty = bench.answer(1.0), bench.answer(1.0, timeout_s=0.05)
    results = await asyncio.gather(patient, hasty, return_exceptions=True)
    assert results[0] == 1.0
    assert "deadline" in str(results[1])


async def test_each_request_leaves_one_observation_with_where_its_time_went_and_its_cost(bench):
    await bench.deploy("import time\ndef predict(x):\n    time.sleep(0.02)\n    return x\n")
    await bench.ask(1.0, 2.0)
    (seen,) = bench.observations
    assert (seen.model, seen.version, seen.outcome, seen.rows, seen.batch_rows) == ("m", "1", "done", 2, 2)
    assert seen.total_s >= seen.queue_s + seen.compute_s
    assert seen.compute_s >= 0.02
    assert seen.cost_dollars == pytest.approx(seen.compute_s * 1.0)  # a replica costs a dollar a second here


async def test_a_refused_request_is_observed_without_inventing_a_label(bench):
    await bench.deploy(TIMES.format(1))
    with pytest.raises(NotFound):
        await bench.answer(1.0, reference="made-up-by-a-client")
    with pytest.raises(InvalidInput, match="missing"):
        await bench.plane.infer(Reference("m"), Request({}, 0))
    assert [(o.model, o.outcome) for o in bench.observations] == [("", "rejected"), ("m", "rejected")]


async def test_statistics_add_up(bench):
    await bench.deploy(TIMES.format(1))
    await asyncio.gather(*(bench.ask(1.0, 2.0) for _ in range(10)))
    (statistics,) = bench.plane.statistics()
    assert statistics.inferences == sum(b.rows * b.count for b in statistics.batches) == 20
    assert statistics.executions == sum(b.count for b in statistics.batches)
    assert statistics.succeeded == 10


async def test_two_planes_in_one_process_do_not_notice_each_other(bench, tmp_path):
    from tests.plane.conftest import Bench

    other = Bench(tmp_path / "other")
    await bench.deploy(TIMES.format(1))
    await other.deploy(TIMES.format(2))
    assert (await bench.answer(1.0), await other.answer(1.0)) == (1.0, 2.0)
    await other.plane.close()
    assert await bench.answer(1.0) == 1.0
    assert len(bench.observations) == 2


async def test_a_request_that_an_entrance_could_not_read_is_counted_as_rejected(bench):
    await bench.deploy(TIMES.format(1))
    bench.plane.refused(Reference("m"), InvalidInput("no tensors in it"), "rest")
    (seen,) = bench.observations
    assert (seen.model, seen.version, seen.outcome, seen.error) == ("m", "1", "rejected", "no tensors in it")
    assert bench.plane.statistics()[0].rejected == 1
