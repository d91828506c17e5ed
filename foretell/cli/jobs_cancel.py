"""`foretell jobs cancel`."""

import time
from typing import Annotated

import typer

from foretell.app.packages import open_store
from foretell.cli.options import DatabaseUrl, StoreUrl


def run(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, or the start of it.")],
    store: StoreUrl = "",
    database: DatabaseUrl = "",
) -> None:
    """End a job for good. What was written stays; the process that runs it stops within seconds.

    \b
    Examples:
      foretell jobs cancel 3f2a
    """
    with open_store(store, database) as opened:
        info = opened.jobs.cancel(opened.jobs.get(job).id, time.time())
        rows = opened.jobs.totals(info.id).rows
    print(f"job {info.id} is cancelled; {rows:,} rows are in {info.output}")
