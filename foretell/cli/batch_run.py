"""Runs a job for the verbs `batch` and `jobs resume`: progress while it runs, the report at its end."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator

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
from foretell.report.units import dollars, seconds
from foretell.store.job import JobInfo
from foretell.store.store import Store
from foretell.telemetry.log import setup_logging

if sys.platform == "win32":
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    from uvloop import new_event_loop

INTERRUPTED = 130


def run_job(config: Config, store: Store, job: JobInfo, source: Source, as_json: bool) -> None:
    """Run a job to its end and print the report. Ctrl-C leaves it resumable, with exit code 130."""
    setup_logging("warning")
    with _bar(job) as tell, asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            report = runner.run(_until_interrupted(config, store, job, source, tell))
        except asyncio.CancelledError:
            report = None
    info = store.jobs.get(job.id)
    if report is None and info.state != "completed":
        done = store.jobs.totals(job.id)
        print(f"interrupted; {done.rows:,} rows are done. Go on: foretell jobs resume {job.id}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    show_report(info.report, as_json)


async def _until_interrupted(
    config: Config, store: Store, job: JobInfo, source: Source, tell: Callable[[running.Progress], None]
) -> Report:
    task = asyncio.ensure_future(BatchService(config, store).run(job, source, tell))
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
