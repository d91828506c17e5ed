"""`foretell jobs`: lists them; its subcommands are verbs of their own."""

import time
from datetime import datetime
from typing import Any

from foretell.app.packages import open_store
from foretell.batch.owner import gone
from foretell.batch.spec import decode_spec
from foretell.cli.console import print_json, print_table
from foretell.cli.options import AsJson, DatabaseUrl, StoreUrl
from foretell.store.job import JobInfo
from foretell.store.store import Store


def run(store: StoreUrl = "", database: DatabaseUrl = "", as_json: AsJson = False) -> None:
    """List the batch jobs of the store, newest first.

    \b
    Examples:
      foretell jobs
      foretell jobs show 3f2a
      foretell jobs resume 3f2a
      foretell jobs cancel 3f2a
    """
    with open_store(store, database) as opened:
        jobs = [facts(opened, job) for job in opened.jobs.all()]
    if as_json:
        print_json(jobs)
        return
    names = ("id", "state", "model", "rows", "errors", "created", "output")
    head = ("id", "state", "model", ">rows", ">errors", "created", "output")
    print_table(head, [[job[name] for name in names] for job in jobs])


def facts(store: Store, job: JobInfo) -> dict[str, Any]:
    """What there is to say about a job in a line. Its state is "stopped" where whoever ran it is gone."""
    totals = store.jobs.totals(job.id)
    return {
        "id": job.id,
        "state": "stopped" if _is_stopped(job) else job.state,
        "model": decode_spec(job.spec).model,
        "rows": totals.rows,
        "errors": totals.errors,
        "parts": totals.parts,
        "read": totals.read,
        "compute_s": totals.compute_s,
        "dollars": totals.dollars,
        "attempts": job.attempts,
        "created": moment(job.created),
        "updated": moment(job.updated),
        "output": job.output,
        "reason": job.reason,
    }


def _is_stopped(job: JobInfo) -> bool:
    """Whether whoever ran it ended without a word, so that its state still says what that one did."""
    held = job.state in ("running", "finalizing") and job.owner
    return bool(held) and (job.lease_until <= time.time() or gone(job.owner))


def moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(" ", "seconds")
