"""Jobs: the state machine, the lease that one process holds, and parts that exist once they are recorded."""

import pytest

from foretell.core.errors import Conflict, NotFound
from foretell.store.job import NEXT, JobPart

NOBODY_GONE = lambda owner: False  # noqa: E731


@pytest.fixture
def jobs(store):
    return store.jobs


@pytest.fixture
def job(jobs):
    return jobs.create("/out", "{}", "{}", now=100.0).id


def test_a_job_is_found_by_the_start_of_its_id_and_by_its_output(jobs, job):
    assert jobs.get(job[:6]).id == job == jobs.by_output("/out").id
    assert jobs.by_output("/elsewhere") is None
    with pytest.raises(NotFound, match="no job"):
        jobs.get("zzz")


def test_a_claimed_job_is_refused_to_others_until_its_lease_has_run_out(jobs, job):
    assert jobs.claim(job, "a", 100.0, NOBODY_GONE).state == "running"
    with pytest.raises(Conflict, match=r"run by another process \(a\), whose lease ends in 20 s"):
        jobs.claim(job, "b", 110.0, NOBODY_GONE)
    jobs.renew(job, "a", 120.0)
    with pytest.raises(Conflict):
        jobs.claim(job, "b", 149.0, NOBODY_GONE)
    assert jobs.claim(job, "b", 151.0, NOBODY_GONE).attempts == 2


def test_a_lease_of_a_process_that_is_known_to_be_dead_is_free(jobs, job):
    jobs.claim(job, "a", 100.0, NOBODY_GONE)
    assert jobs.claim(job, "b", 101.0, lambda owner: owner == "a").owner == "b"


def test_who_lost_the_lease_writes_nothing_more(jobs, job):
    jobs.claim(job, "a", 100.0, NOBODY_GONE)
    jobs.claim(job, "b", 140.0, NOBODY_GONE)
    for write in (
        lambda: jobs.record(job, "a", JobPart(0, 0)),
        lambda: jobs.renew(job, "a", 141.0),
        lambda: jobs.move(job, "a", "completed", 141.0),
        lambda: jobs.plan(job, "a", "{}"),
    ):
        with pytest.raises(Conflict, match="run by another process now"):
            write()
    assert jobs.parts(job) == []
    assert jobs.get(job).owner == "b"


def test_parts_add_up_and_none_is_recorded_twice(jobs, job):
    jobs.claim(job, "a", 100.0, NOBODY_GONE)
    first = JobPart(0, 1, ("part-1", "errors-1"), 10, 8, 2, 100, 0.5, 0.25, "{}", 101.0)
    jobs.record(job, "a", first)
    jobs.record(job, "a", JobPart(0, 0, (), 10))
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        jobs.record(job, "a", first)
    assert jobs.parts(job) == [JobPart(0, 0, (), 10), first]
    totals = jobs.totals(job)
    assert (totals.parts, totals.read, totals.rows, totals.errors, totals.compute_s) == (2, 20, 8, 2, 0.5)


def test_a_cancelled_job_is_over_for_whoever_runs_it(jobs, job):
    jobs.claim(job, "a", 100.0, NOBODY_GONE)
    assert jobs.cancel(job, 101.0).state == "cancelled"
    with pytest.raises(Conflict, match="was cancelled"):
        jobs.record(job, "a", JobPart(0, 0))
    with pytest.raises(Conflict, match="is cancelled: it cannot become running"):
        jobs.claim(job, "b", 200.0, NOBODY_GONE)


def test_one_process_at_a_time_says_what_became_of_a_cancelled_job(jobs, job):
    jobs.claim(job, "a", 100.0, NOBODY_GONE)
    with pytest.raises(Conflict, match="is running"):
        jobs.claim_ending(job, "b", 101.0, NOBODY_GONE)
    jobs.cancel(job, 102.0)
    jobs.claim_ending(job, "b", 103.0, NOBODY_GONE)
    jobs.renew(job, "b", 104.0)
    with pytest.raises(Conflict, match="another process"):
        jobs.claim_ending(job, "a", 105.0, NOBODY_GONE)
    with pytest.raises(Conflict, match="was cancelled"):
        jobs.report(job, "a", "{}")
    jobs.report(job, "b", '{"by": "b"}')
    assert jobs.get(job).report == '{"by": "b"}'
    with pytest.raises(Conflict, match="has its report"):
        jobs.claim_ending(job, "a", 200.0, NOBODY_GONE)


def test_a_job_that_failed_or_was_set_aside_gives_its_lease_back(jobs, job):
    for state in ("failed", "queued"):
        jobs.claim(job, "a", 100.0, NOBODY_GONE)
        jobs.move(job, "a", state, 101.0, reason="why")
        assert jobs.get(job).reason == "why"
        assert jobs.claim(job, "b", 102.0, NOBODY_GONE).reason == ""
        jobs.move(job, "b", "queued", 103.0)


def test_only_the_moves_of_the_table_are_possible(jobs, job):
    for before, allowed in NEXT.items():
        for after in NEXT:
            assert (after in allowed) == _moves(jobs, before, after), (before, after)


def _moves(jobs, before, after):
    job = jobs.create(f"/{before}-{after}", "{}", "{}", 1.0).id
    path = {
        "queued": [],
        "running": ["running"],
        "finalizing": ["running", "finalizing"],
        "failed": ["running", "failed"],
        "completed": ["running", "finalizing", "completed"],
        "cancelled": ["cancelled"],
    }[before]
    try:
        for state in [*path, after]:
            if state == "cancelled":
                jobs.cancel(job, 1.0)
            elif state == "running":
                jobs.claim(job, "a", 1.0, NOBODY_GONE)
            else:
                if jobs.get(job).owner != "a":  # as a process that holds a lease on a job in that state would
                    return False
                jobs.move(job, "a", state, 1.0)
    except Conflict:
        return False
    return True


def test_one_output_has_one_job_that_can_still_run(jobs, job):
    with pytest.raises(Conflict, match=f"job {job} \\(queued\\) writes to /out"):
        jobs.create("/out", "{}", "{}", 1.0)
    jobs.cancel(job, 1.0)
    again = jobs.create("/out", "{}", "{}", 200.0)
    assert [info.id for info in jobs.all()] == [again.id, job]


def test_jobs_are_no_change_of_what_servers_serve(store):
    before = store.change_token()
    job = store.jobs.create("/out", "{}", "{}", 1.0).id
    store.jobs.claim(job, "a", 1.0, NOBODY_GONE)
    assert store.change_token() == before
