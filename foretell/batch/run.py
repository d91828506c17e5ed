"""One run of a job, from its claim to its last state: a crew does its parts, and each that is done is recorded here.

Whoever calls owns the crew and the store. Reading and writing happen in threads; the loop only passes parts on.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from foretell.batch.layout import Layout
from foretell.batch.output import OutputFolder
from foretell.batch.part import Part, PartRange
from foretell.batch.protocol import ERRORS, PartKey, leavings, missing
from foretell.batch.question import layout_of
from foretell.batch.source import Source, Survey
from foretell.batch.spec import JobSpec, Plan, check_unchanged, decode_plan, decode_spec, encode
from foretell.batch.tuning import MOST_TRIED, TRIED, Sizes
from foretell.batch.work import Crew
from foretell.core.errors import Conflict, ForetellError, InvalidInput
from foretell.store.job import JobInfo, JobPart, State
from foretell.store.jobs import LEASE_S, Jobs

T = TypeVar("T")


class Progress(msgspec.Struct):
    """How far a job is. `total` is None while the form of the input does not tell; `began` and `ended` are monotonic,
    and `before` the rows that earlier runs had done.
    """

    total: int | None = None
    read: int = 0
    rows: int = 0
    errors: int = 0
    parts: int = 0
    dollars: float = 0.0
    compute_s: float = 0.0
    before: int = 0
    began: float = 0.0
    ended: float = 0.0

    def add(self, part: JobPart) -> None:
        self.read += part.read
        self.rows += part.rows
        self.errors += part.errors
        self.dollars += part.dollars
        self.compute_s += part.compute_s
        self.parts += 1

    def rows_per_s(self, now: float) -> float:
        """Rows of the input a second, in this run."""
        return (self.read - self.before) / max(now - self.began, 1e-9)

    def left_s(self, now: float) -> float | None:
        """Seconds until the end at this pace, None where that cannot be said."""
        pace = self.rows_per_s(now)
        return (self.total - self.read) / pace if self.total is not None and pace else None


class JobRun:
    """`tell` hears of every part. `run` it once; whoever claimed the job (`owner`) says how it ended (`leave`)."""

    def __init__(
        self, job: JobInfo, jobs: Jobs, owner: str, source: Source, crew: Crew, tell: Callable[[Progress], None]
    ) -> None:
        self.job = job
        self.spec: JobSpec = decode_spec(job.spec)
        self.plan: Plan = decode_plan(job.plan)
        self.progress = Progress()
        self._jobs = jobs
        self._owner = owner
        self._source = source
        self._crew = crew
        self._tell = tell
        self._output = OutputFolder(Path(self.spec.writing.folder))

    async def run(self) -> None:
        """Do what is left to do, while somebody keeps the lease (`while_held`); then the job is finalizing. Raises why
        it could not.
        """
        self.progress.began = time.monotonic()
        layout, survey, done = await asyncio.to_thread(self._prepare)
        self.progress.total = survey.total
        for part in done.values():
            self.progress.add(part)
        self._check_errors()
        if not self.plan.part_rows:
            await self._decide(layout, survey)
        self.progress.before = self.progress.read
        self._tell(self.progress)
        await self._do_parts(layout, self._crew.parts(layout, self.plan.part_rows, survey.rows, done))
        # A worker that died may have left halves, or a file that its part turned out not to have.
        await asyncio.to_thread(self._remove_leavings)
        await asyncio.to_thread(self._jobs.move, self.job.id, self._owner, "finalizing", time.time())
        self.progress.ended = time.monotonic()

    def _prepare(self) -> tuple[Layout, Survey, dict[PartKey, JobPart]]:
        check_unchanged(self.job.id, self.plan.files, self._source.seen)
        schema = self._source.schema
        question = self._crew.question
        layout = layout_of(self.spec, question, self._source, schema)
        survey = self._source.survey(question.check, layout.check)
        self._output.prepare()
        return layout, survey, self._remove_leavings()

    def _remove_leavings(self) -> dict[PartKey, JobPart]:
        """Remove what no record names, and return the records. Raises `Conflict` if a file that one names is gone."""
        done = {PartKey(part.file, part.part): part for part in self._jobs.parts(self.job.id)}
        recorded = [name for part in done.values() for name in part.names]
        present = self._output.names()
        if lost := missing(present, recorded):
            raise Conflict(
                f"{self._output.path / lost[0]} was committed and is gone ({len(lost)} such files). Restore it, or"
                f" cancel job {self.job.id} and start anew in another folder"
            )
        self._output.remove(leavings(present, recorded))
        return done

    async def _decide(self, layout: Layout, survey: Survey) -> None:
        """Choose the sizes of requests and parts, once for the whole job."""
        sizes = Sizes(self.spec.batch_rows, self.spec.part_rows)
        if not (sizes.batch_rows and sizes.part_rows):
            rows = MOST_TRIED if survey.total is None else min(MOST_TRIED, survey.total // TRIED + 1)
            table = await asyncio.to_thread(self._source.look, layout, rows)
            row_bytes = max(survey.row_bytes, table.nbytes / max(table.num_rows, 1))
            tried = await self._crew.sizes(table, row_bytes)
            sizes = Sizes(sizes.batch_rows or tried.batch_rows, sizes.part_rows or tried.part_rows)
        self.plan = msgspec.structs.replace(self.plan, batch_rows=sizes.batch_rows, part_rows=sizes.part_rows)
        await asyncio.to_thread(self._jobs.plan, self.job.id, self._owner, encode(self.plan))

    async def _do_parts(self, layout: Layout, parts: Iterator[Part | PartRange]) -> None:
        window = asyncio.Semaphore(self._crew.width)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await window.acquire()
                    part = await asyncio.to_thread(next, parts, None)
                    if part is None:
                        return
                    task = group.create_task(self._do(layout, part))
                    task.add_done_callback(lambda _: window.release())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _do(self, layout: Layout, part: Part | PartRange) -> None:
        done = await self._crew.do(layout, part, self.plan.batch_rows)
        record = msgspec.structs.replace(done.record, finished=time.time())
        await asyncio.to_thread(self._jobs.record, self.job.id, self._owner, record)
        self.progress.add(record)
        self._tell(self.progress)
        self._check_errors(done.reason)

    def _check_errors(self, reason: str = "") -> None:
        limit = self.spec.max_errors
        if limit is not None and self.progress.errors > limit:
            raise InvalidInput(
                f"{self.progress.errors} rows failed, --max-errors allows {limit}; one of them:"
                f" {reason or 'see the errors file'}. They are in {self._output.path / ERRORS}. Resume with a"
                " higher limit, or mend the input and start anew"
            )


async def while_held(jobs: Jobs, job: str, owner: str, work: Coroutine[Any, Any, T]) -> T:
    """What comes of `work`, the lease kept meanwhile. When the lease is lost, ends the work and raises why."""
    keeping = asyncio.create_task(keep_lease(jobs, job, owner))
    working = asyncio.create_task(work)
    try:
        await asyncio.wait((keeping, working), return_when=asyncio.FIRST_COMPLETED)
        if keeping.done() and not working.done():
            await keeping
        return await working
    finally:
        working.cancel()
        keeping.cancel()
        await asyncio.wait((keeping, working))


async def keep_lease(jobs: Jobs, job: str, owner: str) -> None:
    """Renew it until this is cancelled. Raises `Conflict` when it is lost."""
    while True:
        await asyncio.sleep(LEASE_S / 6)
        await asyncio.to_thread(jobs.renew, job, owner, time.time())


def leave(jobs: Jobs, job: str, owner: str, error: BaseException) -> None:
    """A run ended early: give the job back so that it can be resumed, with the reason."""
    state: State = "failed" if isinstance(error, Exception) else "queued"
    reason = error.message if isinstance(error, ForetellError) else f"{type(error).__name__}: {error}"
    if state == "queued":
        reason = "interrupted"
    with contextlib.suppress(Conflict):  # somebody else has it, or it was cancelled: then it says what they say
        jobs.move(job, owner, state, time.time(), reason)
