"""Pure policies: when to cut, whom to admit, what a batch costs, what to keep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.core.errors import DeadlineExceeded, InvalidInput, Overloaded
from foretell.core.request import Request
from foretell.core.settings import BatchingSettings, CacheSettings
from foretell.scheduling.admission import admit
from foretell.scheduling.batcher import LEAD_S, RETURN_S, Returning, decide
from foretell.scheduling.cache import ResponseCache, request_digest
from foretell.scheduling.service import ServiceTimes


def cut(settings=None, service=None, **given):
    values = {"waiting_rows": 1, "oldest_arrival": 10.0, "replicas": 1, "free_at": None, "now": 10.0} | given
    return decide(settings or BatchingSettings(), service or ServiceTimes(), **values)


def learned(fixed: float, per_row: float) -> ServiceTimes:
    service = ServiceTimes()
    for rows in (1, 2, 4, 8, 16, 32) * 5:
        service.observe(rows, fixed + per_row * rows)
    return service


class TestBatcher:
    def test_an_idle_replica_takes_what_waits_at_once(self):
        assert cut(waiting_rows=5).rows == 5

    def test_never_more_than_the_largest_batch(self):
        assert cut(BatchingSettings(max_batch_size=4), waiting_rows=9).rows == 4

    def test_a_busy_replica_gets_its_next_batch_just_before_it_frees_up(self):
        early = cut(waiting_rows=3, free_at=10.5)
        assert early.rows == 0
        assert early.again_at == pytest.approx(10.5 - LEAD_S)
        assert cut(waiting_rows=3, free_at=10.5, now=10.5 - LEAD_S / 2).rows == 3

    def test_a_full_batch_leaves_early_even_for_a_busy_replica(self):
        assert cut(BatchingSettings(max_batch_size=4), waiting_rows=4, free_at=99.0).rows == 4

    def test_queue_delay_holds_a_batch_open_until_the_oldest_has_waited_enough(self):
        settings = BatchingSettings(max_queue_delay_ms=20)
        assert cut(settings, now=10.01).again_at == pytest.approx(10.02)
        assert cut(settings, now=10.021).rows == 1
        assert cut(settings, waiting_rows=64, now=10.01).rows == 64

    def test_several_replicas_share_what_waits(self):
        assert cut(waiting_rows=7, replicas=2).rows == 4

    def test_the_share_counts_what_the_neighbours_run_already(self):
        assert cut(waiting_rows=4, running_rows=4, replicas=2).rows == 4
        assert cut(waiting_rows=7, running_rows=1, replicas=2).rows == 4
        assert cut(waiting_rows=2, running_rows=9, replicas=2).rows == 2

    def test_an_idle_replica_lets_the_clients_it_just_answered_come_back_before_it_starts_a_long_batch(self):
        slow = learned(fixed=0.005, per_row=0.01)
        back = Returning()
        back.answered(4, 10.0)
        back.came(1)
        held = cut(service=slow, waiting_rows=1, returning=back)
        assert held.rows == 0
        assert held.again_at == pytest.approx(10.0 + RETURN_S)
        assert cut(service=slow, waiting_rows=1, returning=back, now=10.0 + RETURN_S).rows == 1, "they did not come"
        back.came(3)
        assert cut(service=slow, waiting_rows=4, returning=back).rows == 4, "all are back"

    def test_a_quick_model_waits_for_nobody(self):
        back = Returning()
        back.answered(64, 10.0)
        assert cut(service=learned(fixed=0.0001, per_row=0.0001), returning=back).rows == 1

    def test_replicas_that_answer_together_expect_all_their_clients(self):
        back = Returning()
        back.answered(4, 10.0)
        back.answered(3, 10.0 + RETURN_S / 2)
        assert back.rows(10.0 + RETURN_S) == 7
        back.answered(2, 11.0)
        assert back.rows(11.0) == 2, "those who have not come by now are not expected any more"

    def test_a_latency_target_limits_the_batch_to_what_still_meets_it(self):
        settings = BatchingSettings(target_p99_ms=40)
        service = learned(fixed=0.002, per_row=0.001)
        assert 14 <= cut(settings, service, waiting_rows=64).rows <= 18  # 2 ms + 18 x 1 ms = half of 40 ms

    def test_a_target_that_no_batch_can_meet_still_answers_row_by_row(self):
        assert cut(BatchingSettings(target_p99_ms=0.1), learned(0.01, 0.01), waiting_rows=9).rows == 1


class TestServiceTimes:
    @given(st.floats(1e-5, 1.0), st.floats(1e-6, 0.1))
    def test_recovers_the_line_that_made_the_observations(self, fixed, per_row):
        service = learned(fixed, per_row)
        reference = np.polyfit([1, 2, 4, 8, 16, 32], [fixed + per_row * n for n in (1, 2, 4, 8, 16, 32)], 1)
        assert service.predict(20) == pytest.approx(np.polyval(reference, 20), rel=1e-3)

    @given(st.lists(st.tuples(st.integers(1, 64), st.floats(1e-6, 10.0)), min_size=1, max_size=60))
    def test_predictions_are_never_negative_and_never_shrink_with_size(self, observations):
        service = ServiceTimes()
        for rows, seconds in observations:
            service.observe(rows, seconds)
        predictions = [service.predict(n) for n in range(1, 65)]
        assert predictions[0] >= 0
        assert service.useful_rows() >= 2
        assert predictions == sorted(predictions)

    def test_a_model_that_gains_from_batching_is_given_large_batches_and_one_that_does_not_small_ones(self):
        assert learned(fixed=0.001, per_row=0.00001).useful_rows() >= 1000
        assert learned(fixed=0.0, per_row=0.01).useful_rows() == 2
        assert learned(fixed=0.004, per_row=0.01).useful_rows() == 8

    def test_a_long_time_of_single_rows_does_not_make_it_forget_what_batching_gains(self):
        service = learned(fixed=0.001, per_row=0.00001)
        for _ in range(5000):
            service.observe(1, 0.00101)
        assert service.useful_rows() >= 500
        assert service.predict(64) == pytest.approx(0.00164, rel=0.05)

    def test_nothing_is_limited_before_two_sizes_were_seen(self):
        service = ServiceTimes()
        service.observe(1, 0.001)
        assert service.useful_rows() > 1000

    def test_forgets_old_speeds(self):
        service = learned(0.0, 0.001)
        for rows in (1, 2, 4, 8) * 200:
            service.observe(rows, 0.01 * rows)
        assert service.predict(8) == pytest.approx(0.08, rel=0.02)


class TestAdmission:
    def admit(self, rows=1, deadline=None, queued_rows=0, wait_s=0.0, **settings):
        request = Request({}, rows, deadline=deadline)
        admit(request, BatchingSettings(**settings), queued_rows=queued_rows, wait_s=wait_s, now=100.0)

    def test_a_full_queue_says_when_to_come_back(self):
        with pytest.raises(Overloaded, match="10 rows wait already") as caught:
            self.admit(queued_rows=10, wait_s=2.5, max_queue_rows=10)
        assert caught.value.retry_after_s == 2.5

    def test_a_wait_that_outlasts_the_deadline_is_refused_at_the_door(self):
        with pytest.raises(Overloaded, match="estimated wait"):
            self.admit(deadline=101.0, wait_s=1.5)
        self.admit(deadline=101.0, wait_s=0.5)

    def test_a_deadline_in_the_past_is_expired_not_queued(self):
        with pytest.raises(DeadlineExceeded):
            self.admit(deadline=99.0)

    def test_a_request_that_could_never_fit_is_the_clients_mistake(self):
        with pytest.raises(InvalidInput, match="split it"):
            self.admit(rows=11, max_queue_rows=10)


class TestCache:
    def test_equal_inputs_have_equal_digests_and_different_ones_do_not(self):
        x = np.arange(6, dtype=np.float32)
        assert request_digest({"x": x}) == request_digest({"x": x.copy()})
        others = [{"x": x.reshape(2, 3)}, {"y": x}, {"x": x.astype(np.float64)}, {"x": x + 1}]
        assert len({request_digest(inputs) for inputs in [{"x": x}, *others]}) == 5

    def test_the_least_recently_used_leaves_when_the_budget_is_spent(self):
        cache = ResponseCache(CacheSettings(max_bytes=3 * (512 + 400)), lambda: 0.0)
        for key in (b"a", b"b", b"c"):
            cache.put(key, {"y": np.zeros(100, np.float32)})
        assert cache.get(b"a") is not None
        cache.put(b"d", {"y": np.zeros(100, np.float32)})
        assert cache.get(b"b") is None
        assert cache.get(b"a") is not None
        assert cache.nbytes <= 3 * (512 + 400)

    def test_answers_expire(self):
        time = [0.0]
        cache = ResponseCache(CacheSettings(max_bytes=10_000, ttl_s=5), lambda: time[0])
        cache.put(b"a", {"y": np.zeros(1)})
        time[0] = 4.9
        assert cache.get(b"a") is not None
        time[0] = 5.1
        assert cache.get(b"a") is None
        assert cache.nbytes == 0

    def test_an_answer_larger_than_the_budget_is_not_kept(self):
        cache = ResponseCache(CacheSettings(max_bytes=100), lambda: 0.0)
        cache.put(b"a", {"y": np.zeros(1000)})
        assert cache.get(b"a") is None
