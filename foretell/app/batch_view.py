"""A job of calls in OpenAI's shape. Pure."""

import msgspec

from foretell.batch.ending import Ended, Ending
from foretell.batch.spec import Plan, decode_plan, decode_spec
from foretell.server.openai_batches import BatchFault, BatchFaults, BatchObject, RequestCounts
from foretell.store.job import JobInfo, Totals

PREFIX = "batch_"


def show(job: JobInfo, totals: Totals) -> BatchObject:
    """What clients see of a job of calls. `totals` are those of a job without a report."""
    spec, plan = decode_spec(job.spec), decode_plan(job.plan)
    calling = spec.calling
    assert calling is not None
    report = msgspec.json.decode(job.report, type=Ended) if job.report else None
    ending = report.ending if report else None
    done = report or totals
    shown = BatchObject(
        id=PREFIX + job.id,
        endpoint=calling.endpoint,
        model=spec.model or None,
        input_file_id=calling.file,
        completion_window=calling.window,
        status=_status(job, plan, ending),
        created_at=int(job.created),
        in_progress_at=int(plan.began) or None,
        expires_at=int(calling.expires),
        request_counts=RequestCounts(plan.calls, done.rows, done.errors),
        metadata=calling.metadata or None,
    )
    if shown.status in ("cancelling", "cancelled"):
        shown.cancelling_at = int(job.updated)
    if ending is not None:
        _end(shown, ending)
    elif shown.status == "finalizing":
        shown.finalizing_at = int(job.updated)
    elif shown.status == "failed":
        shown.failed_at = int(job.updated)
        shown.errors = BatchFaults([BatchFault("server_error", job.reason, None, None)])
    return shown


def _status(job: JobInfo, plan: Plan, ending: Ending | None) -> str:
    if ending is not None:
        return ending.status
    if job.state in ("failed", "finalizing"):
        return job.state
    if job.state == "cancelled":
        return "cancelling"
    return "in_progress" if plan.began else "validating"


def _end(shown: BatchObject, ending: Ending) -> None:
    at = int(ending.ended)
    if ending.status == "completed":
        shown.completed_at = at
    elif ending.status == "failed":
        shown.failed_at = at
    elif ending.status == "expired":
        shown.expired_at = at
    else:
        shown.cancelled_at = at
    if shown.in_progress_at is not None:
        shown.finalizing_at = int(ending.gathered)
    shown.output_file_id = ending.answers or None
    shown.error_file_id = ending.errors or None
    if ending.faults:
        shown.errors = BatchFaults([BatchFault(f.code, f.message, f.line, f.param) for f in ending.faults])
