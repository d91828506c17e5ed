"""Metrics are an exact fold: any batching gives what counting one observation at a time gives."""

import math
from bisect import bisect_left

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from foretell.core.generation import Load
from foretell.core.observation import TokenUse
from foretell.telemetry.histogram import ROWS, SECONDS
from foretell.telemetry.metrics import OTHER, LiveVersion, Metrics
from foretell.telemetry.sink import Sink
from tests.telemetry.observations import observation


def samples(metrics):
    text, _ = metrics.render()
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in parse(text.decode()) for s in f.samples}


def value(found, name, model="digits", version="3", **labels):
    return found[(name, tuple(sorted({"model": model, "version": version, **labels}.items())))]


seconds = st.one_of(st.floats(0, 100), st.sampled_from(SECONDS))
observations = st.builds(
    observation,
    model=st.sampled_from(["digits", "minilm"]),
    version=st.sampled_from(["1", "2"]),
    outcome=st.sampled_from(["done", "done", "failed", "rejected", "expired", "cancelled"]),
    total_s=seconds,
    queue_s=seconds,
    compute_s=seconds,
    rows=st.integers(1, 100),
    batch_rows=st.integers(0, 100),
    cached=st.booleans(),
    cost_dollars=st.floats(0, 1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(observations, min_size=1, max_size=20), max_size=5))
def test_a_folded_histogram_equals_counting_each_observation(batches):
    metrics = Metrics()
    for batch in batches:
        metrics.consume(batch)
    found = samples(metrics)
    every = [o for batch in batches for o in batch]
    for key in {(o.model, o.version) for o in every}:
        mine = [o for o in every if (o.model, o.version) == key]
        served = [o for o in mine if o.outcome not in ("rejected", "cancelled")]
        ran = [o for o in mine if o.batch_rows]
        check_histogram(found, "foretell_request_seconds", key, [o.total_s for o in served])
        check_histogram(found, "foretell_queue_seconds", key, [o.queue_s for o in ran])
        check_histogram(found, "foretell_compute_seconds", key, [o.compute_s for o in ran])
        for outcome in {o.outcome for o in mine}:
            count = sum(o.outcome == outcome for o in mine)
            assert value(found, "foretell_requests_total", *key, outcome=outcome) == count
        rows = sum(o.rows for o in mine if o.outcome == "done")
        assert value(found, "foretell_inferences_total", *key) == rows
        assert value(found, "foretell_cache_hits_total", *key) == sum(o.cached for o in mine)
        assert math.isclose(
            value(found, "foretell_cost_dollars_total", *key, kind="busy"),
            sum(o.cost_dollars for o in mine),
            abs_tol=1e-12,
        )


def check_histogram(found, name, key, values):
    counts = [0] * (len(SECONDS) + 1)
    for v in values:
        counts[bisect_left(SECONDS, v)] += 1
    for bound, count in zip([*map("{:g}".format, SECONDS), "+Inf"], np.cumsum(counts), strict=True):
        le = bound if bound == "+Inf" else str(float(bound))
        got = found.get((f"{name}_bucket", tuple(sorted({"model": key[0], "version": key[1], "le": le}.items()))))
        got = value(found, f"{name}_bucket", *key, le=bound) if got is None else got
        assert got == count
    assert value(found, f"{name}_count", *key) == len(values)
    assert math.isclose(value(found, f"{name}_sum", *key), sum(values), abs_tol=1e-9)


def test_live_values_appear_with_batches_counted_once_each():
    live = LiveVersion("digits", "3", 7, {"ready": 2, "starting": 1}, [(1, 5), (8, 2), (5000, 1)], 0.25)
    found = samples(Metrics(lambda: [live]))
    assert value(found, "foretell_queue_rows") == 7
    assert value(found, "foretell_replicas", state="ready") == 2
    assert value(found, "foretell_replicas", state="starting") == 1
    assert value(found, "foretell_batch_rows_count") == 8
    assert value(found, "foretell_batch_rows_sum") == 5 + 16 + 5000
    assert value(found, "foretell_batch_rows_bucket", le="1") == 5
    assert value(found, "foretell_batch_rows_bucket", le=f"{ROWS[-1]:g}") == 7
    assert value(found, "foretell_cost_dollars_total", kind="provisioned") == 0.25


def test_a_scrape_is_exact_without_waiting_for_the_thread():
    metrics = Metrics()
    sink = Sink(2000, [metrics])
    for _ in range(1000):
        sink.record(observation())
    sink.drain()
    text, content_type = metrics.render()
    assert 'foretell_requests_total{model="digits",outcome="done",version="3"} 1000.0' in text.decode()
    assert content_type.startswith("text/plain")


def test_openmetrics_is_given_to_who_asks_for_it():
    metrics = Metrics(lambda: [LiveVersion("digits", "3", batches=[(4, 2)])])
    metrics.consume([observation()])
    text, content_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(text.decode())}
    assert {"foretell_requests", "foretell_request_seconds", "foretell_batch_rows"} <= names


def test_the_gateways_own_process_is_shown():
    found = samples(Metrics())
    assert found[("process_resident_memory_bytes", ())] > 0
    assert ("process_cpu_seconds_total", ()) in found


def test_drops_are_shown_by_where_they_happened():
    sink = Sink(2, [])
    for _ in range(5):
        sink.record(observation())
    found = samples(Metrics(dropped=lambda: {"sink": sink.dropped}))
    assert found[("foretell_observations_dropped_total", (("where", "sink"),))] == 3


def test_labels_that_clients_make_up_are_bounded():
    metrics = Metrics(max_series=3)
    for number in range(50):
        metrics.consume([observation(model=f"made-up-{number}", outcome="rejected")])
    found = samples(metrics)
    models = {dict(labels)["model"] for name, labels in found if name == "foretell_requests_total"}
    assert len(models) == 4
    assert value(found, "foretell_requests_total", OTHER, "", outcome="rejected") == 47


def test_two_instances_do_not_notice_each_other():
    one, other = Metrics(), Metrics()
    one.consume([observation()])
    assert not any(name == "foretell_requests_total" for name, _ in samples(other))


def test_a_generation_counts_tokens_and_the_time_between_them():
    metrics = Metrics(lambda: [LiveVersion("digits", "3", load=Load(3, 4, 50, 100, 20, 7, 9, 1.5))])
    gaps = np.array([0.01, 0.02, 0.4], np.float32).tobytes()
    metrics.consume(
        [
            observation(tokens=TokenUse(100, 60, 20, 8, 6, 0.2, gaps), cost_dollars=0.003),
            observation(tokens=TokenUse(10, 0, 0), outcome="cancelled", cost_dollars=0.0),
            observation(),
        ]
    )
    found = samples(metrics)
    for kind, count in {"prompt": 110, "cached": 60, "completion": 20}.items():
        assert value(found, "foretell_tokens_total", kind=kind) == count
    assert value(found, "foretell_draft_tokens_total", outcome="accepted") == 6
    assert value(found, "foretell_draft_tokens_total", outcome="rejected") == 2
    check_histogram(found, "foretell_time_to_first_token_seconds", ("digits", "3"), [0.2])
    check_histogram(found, "foretell_inter_token_seconds", ("digits", "3"), np.frombuffer(gaps, np.float32).tolist())
    assert value(found, "foretell_sequences", state="running") == 3
    assert value(found, "foretell_kv_cache_tokens", state="capacity") == 100
    assert value(found, "foretell_prefix_lookup_tokens_total", outcome="miss") == 9
    assert value(found, "foretell_speculation_saved_seconds_total") == 1.5


def test_a_thousand_tokens_cost_what_their_generations_cost_and_nothing_else():
    metrics = Metrics()
    use = TokenUse(prompt_tokens=100, cached_tokens=60, completion_tokens=20)
    metrics.consume([observation(tokens=use, cost_dollars=0.003)])
    assert math.isclose(value(samples(metrics), "foretell_dollars_per_1000_tokens"), 0.05)


def test_a_model_that_predicts_has_no_metrics_of_tokens():
    metrics = Metrics(lambda: [LiveVersion("digits", "3")])
    metrics.consume([observation()])
    assert not any("token" in name or "sequences" in name for name, _ in samples(metrics))
