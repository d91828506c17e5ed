"""Runs a job for the verbs `batch` and `jobs resume`: progress while it runs, the report at its end."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from foretell.app.batch import BatchService
from foretell.app.config import Config
from foretell.batch import run as running
from foretell.batch.report import Report, lines
from foretell.batch.source import Source
from foretell.cli.console import print_table
from foretell.cli.signals import on_interrupt
from foretell.core.errors import ConfigError
from foretell.report.units import dollars, seconds
from foretell.store.job import JobInfo
from foretell.store.store import Store
from foretell.telemetry.log import setup_logging

if sys.platform == "win32":
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    from uvloop import new_event_loop

INTERRUPTED = 130

Where = Literal["local", "ray"]
On = Annotated[Where, typer.Option("--on", help="Where it runs: here, or on the workers of a Ray cluster.")]
Address = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Of the Ray cluster.", show_default="the one here, or a new one")
]


def ray_address(where: Where, address: str) -> str | None:
    """Which cluster is meant, None for none. Raises `ConfigError` for an address without one."""
    if where == "local" and address:
        raise ConfigError(f"--address {address} is of a Ray cluster; say --on ray as well, or leave it out")
    return address if where == "ray" else None


def run_job(config: Config, store: Store, job: JobInfo, source: Source, as_json: bool, ray: str | None) -> None:
    """Run a job to its end and print the report; `ray` as of `BatchService`. Ctrl-C leaves it resumable, with exit
    code 130.
    """
    setup_logging("warning")
    with _bar(job) as tell, asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            report = runner.run(_until_interrupted(BatchService(config, store, ray=ray), job, source, tell))
        except asyncio.CancelledError:
            report = None
    info = store.jobs.get(job.id)
    if report is None and info.state != "completed":
        done = store.jobs.totals(job.id)
        print(f"interrupted; {done.rows:,} rows are done. Go on: foretell jobs resume {job.id}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    show_report(info.report, as_json)


async def _until_interrupted(
    service: BatchService, job: JobInfo, source: Source, tell: Callable[[running.Progress], None]
) -> Report:
    task = asyncio.ensure_future(service.run(job, source, tell))
    with on_interrupt(task.cancel):
        return await task


def show_report(report: str, as_json: bool) -> None:
    """A finished job's report, for scripts or for people."""
    if as_json:
        print(report)
        return
    print_table(("", ""), lines(msgspec.json.decode(report, type=Report)))


@contextlib.contextmanager
def _bar(job: JobInfo) -> Iterator[Callable[[running.Progress], None]]:
    """A bar on standard error with rows/s, time left and cost so far; nothing where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda progress: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(f"job {job.id}: loading", total=None)

        def tell(progress: running.Progress) -> None:
            bars.update(task, description=_told(progress), total=progress.total, completed=progress.read)

        yield tell


def _told(progress: running.Progress) -> str:
    now = time.monotonic()
    words = [f"{progress.read:,} rows", f"{progress.rows_per_s(now):,.0f} rows/s"]
    if (left := progress.left_s(now)) is not None:
        words.append(f"{seconds(left)} left")
    if progress.errors:
        words.append(f"{progress.errors:,} errors")
    return ", ".join([*words, dollars(progress.dollars)])
