"""OpenAI's batches on a running server: jobs whose rows are calls of its own API, answered behind the online traffic.

A batch is a job of the store, so it survives the server; whatever a server finds that nobody runs, it goes on with.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import time
import uuid
from pathlib import Path

import msgspec

from foretell.app.background import Background, deployment_of
from foretell.app.batch_view import PREFIX, show
from foretell.batch.calling import CallScorer
from foretell.batch.calls import BadCalls, model_of, write_calls
from foretell.batch.owner import gone, this_process
from foretell.batch.replies import Unanswered, write_replies
from foretell.batch.report import Ending, Fault, Status, make_report, render_json
from foretell.batch.run import JobRun, leave
from foretell.batch.source import Source
from foretell.batch.spec import Calling, JobSpec, Plan, Reading, Writing, decode_plan, decode_spec, encode
from foretell.core.errors import ConfigError, Conflict, ForetellError, InvalidInput, NotFound, NotReady
from foretell.core.reference import parse_reference
from foretell.plane.plane import Plane
from foretell.server.openai import Calls
from foretell.server.openai_batches import BatchAsked, BatchObject
from foretell.store.job import JobInfo, State, Totals
from foretell.store.store import Store

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""How often the store is asked for batches that nobody runs."""

CALLS = "calls.parquet"
_SPARE = 0.75
"""The share of a language model's slots that batches may hold: others find one without sending anybody back."""
PASSING = (ConfigError, NotReady, OSError)
"""What may pass by itself or is mended by an operator, such as a full disk: a batch waits for that."""
_STATES: dict[Status, State] = {"completed": "completed", "failed": "failed", "expired": "failed"}
_WHY: dict[Status, str] = {
    "completed": "",
    "failed": "the batch failed before this call was made",
    "expired": "the completion window ended before this call was made",
    "cancelled": "the batch was cancelled before this call was made",
}


class Batches:
    """Implements `server.openai_batches.BatchJobs`. `start` goes on with what was left; `stop` leaves the rest."""

    def __init__(self, plane: Plane, background: Background, store: Store) -> None:
        self._plane = plane
        self._background = background
        self._store = store
        self._calls = Calls(background)
        self._owner = this_process()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Give back what runs, so that it is gone on with later or elsewhere."""
        tasks = [*self._running.values(), *([self._watching] if self._watching else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What clients ask

    async def create(self, asked: BatchAsked) -> BatchObject:
        job = await asyncio.to_thread(self._create, asked, time.time())
        self._begin(job)
        return await self.get(PREFIX + job.id)

    async def get(self, name: str) -> BatchObject:
        return await asyncio.to_thread(lambda: self._shown(self._job(name)))

    async def all(self) -> list[BatchObject]:
        return await asyncio.to_thread(self._all)

    async def cancel(self, name: str) -> BatchObject:
        job = await asyncio.to_thread(self._job, name)
        await asyncio.to_thread(self._store.jobs.cancel, job.id, time.time())
        if job.id in self._running:
            self._running[job.id].cancel()
        else:
            self._begin(job)
        return await self.get(name)

    def _create(self, asked: BatchAsked, now: float) -> JobInfo:
        files = self._store.files
        info = files.get(asked.file)
        if info.purpose != "batch":
            raise InvalidInput(
                f'file "{info.id}" was uploaded for {info.purpose}; upload it with purpose "batch" (at $.input_file_id)'
            )
        path = files.path(info.id)
        folder = path.parent / "batches" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        source = folder / "uploaded.jsonl"
        with contextlib.suppress(OSError):  # a file system without links
            os.link(path, source)
        if not source.exists():
            shutil.copyfile(path, source)
        calling = Calling(asked.endpoint, info.id, str(source), asked.window, now + asked.window_s, asked.metadata)
        writing = Writing(str(folder / "parts"), keep=("custom_id",))
        spec = JobSpec(model_of(source), "", Reading((str(folder / CALLS),)), writing, calling=calling)
        return self._store.jobs.create(writing.folder, encode(spec), encode(Plan(())), now)

    def _job(self, name: str) -> JobInfo:
        with contextlib.suppress(NotFound):
            job = self._store.jobs.get(name.removeprefix(PREFIX))
            if name == PREFIX + job.id and decode_spec(job.spec).calling is not None:
                return job
        raise NotFound(f'no batch "{name}"; GET /v1/batches lists them')

    def _all(self) -> list[BatchObject]:
        return [self._shown(job) for job in self._store.jobs.all() if decode_spec(job.spec).calling is not None]

    def _shown(self, job: JobInfo) -> BatchObject:
        return show(job, Totals() if job.report else self._store.jobs.totals(job.id))

    # What runs

    async def _watch(self) -> None:
        """Until cancelled: begin what nobody runs. Whoever has a lease keeps it."""
        while True:
            try:
                for job in await asyncio.to_thread(self._store.jobs.unreported):
                    if self._is_ours(job):
                        self._begin(job)
            except Exception:
                log.exception("the store could not be asked for batches; it is asked again")
            await asyncio.sleep(LOOK_S)

    def _is_ours(self, job: JobInfo) -> bool:
        """Whether it is a batch that can be gone on with here; without its model only to its early end."""
        spec = decode_spec(job.spec)
        if spec.calling is None:
            return False
        if job.state == "cancelled" or spec.calling.expires <= time.time() or not spec.model:
            return True
        try:
            self._check_model(spec.model)
        except ForetellError:
            return False
        return True

    def _begin(self, job: JobInfo) -> None:
        if job.id not in self._running:
            task = self._running[job.id] = asyncio.create_task(self._run(job.id))
            task.add_done_callback(lambda _: self._running.pop(job.id, None))

    async def _run(self, name: str) -> None:
        """Bring a batch to its end, unless somebody else has it or this server ends."""
        jobs = self._store.jobs
        try:
            job = await asyncio.to_thread(jobs.claim, name, self._owner, time.time(), gone)
        except Conflict:
            if (await asyncio.to_thread(jobs.get, name)).state == "cancelled":
                await self._end(name, "cancelled")
            return
        try:
            await self._answer(job)
            await self._end(name, "completed")
        except BadCalls as error:
            await self._end(name, "failed", error.faults)
        except TimeoutError:
            await self._end(name, "expired")
        except (Exception, asyncio.CancelledError) as error:
            if (await asyncio.to_thread(jobs.get, name)).state == "cancelled":
                await self._end(name, "cancelled")
            elif isinstance(error, asyncio.CancelledError | Conflict):
                self._leave(name)
            elif isinstance(error, PASSING):
                log.warning("batch %s%s has to wait: %s", PREFIX, name, error)
                self._leave(name)
            else:
                log.exception("batch %s%s failed", PREFIX, name)
                told = error.message if isinstance(error, ForetellError) else f"{type(error).__name__}: {error}"
                await self._end(name, "failed", (Fault("server_error", told),))

    async def _answer(self, job: JobInfo) -> None:
        """Check the calls, if that was not done before, and answer them while there is time."""
        spec, plan = decode_spec(job.spec), decode_plan(job.plan)
        assert spec.calling is not None
        async with asyncio.timeout(max(0.0, spec.calling.expires - time.time())):
            if not plan.began:
                plan = await asyncio.to_thread(self._checked, spec, spec.calling)
                await asyncio.to_thread(self._store.jobs.plan, job.id, self._owner, encode(plan))
                job = msgspec.structs.replace(job, plan=encode(plan))
            source = await asyncio.to_thread(Source, spec.reading.paths)
            width = self._width(spec.model)
            scorer = CallScorer(spec.calling.endpoint, self._calls.ask, width, self._background.spent)
            await JobRun(job, self._store.jobs, self._owner, source, scorer, lambda progress: None).run()

    def _checked(self, spec: JobSpec, calling: Calling) -> Plan:
        (calls,) = spec.reading.paths
        count = write_calls(Path(calling.source), calling.endpoint, self._check_model, Path(calls))
        return Plan(Source((calls,)).seen, calls=count, began=time.time())

    def _check_model(self, model: str) -> None:
        self._plane.describe(parse_reference(model))

    def _width(self, model: str) -> int:
        """Calls under way at a time: enough to keep the replicas busy, with room for others."""
        deployment = deployment_of(self._plane, parse_reference(model))
        spec, replicas = deployment.spec, max(1, deployment.spec.replicas.count)
        if spec.manifest.runtime == "llm":
            return max(1, int(replicas * spec.generation.slots * _SPARE))
        return 2 * replicas * spec.batching.max_batch_size

    # How it ends

    async def _end(self, name: str, status: Status, faults: tuple[Fault, ...] = ()) -> None:
        """Gather what was answered, and say how it ended. It is not broken off, and may be done again after a kill."""
        work = asyncio.ensure_future(asyncio.to_thread(self._gather, name, status, faults))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait((work,))
            raise
        except Conflict:
            if status != "cancelled" and self._store.jobs.get(name).state == "cancelled":
                await self._end(name, "cancelled")
        except PASSING as error:
            log.warning("the answers of batch %s%s cannot be written, it is tried again: %s", PREFIX, name, error)
            self._leave(name)
        except Exception as error:
            log.exception("the answers of batch %s%s could not be gathered", PREFIX, name)
            leave(self._store.jobs, name, self._owner, error)

    def _leave(self, name: str) -> None:
        """Give it back: whoever looks next goes on with it."""
        leave(self._store.jobs, name, self._owner, asyncio.CancelledError())

    def _gather(self, name: str, status: Status, faults: tuple[Fault, ...]) -> None:
        jobs, files = self._store.jobs, self._store.files
        job, gathered = jobs.get(name), time.time()
        if job.report:
            return
        spec, plan, parts = decode_spec(job.spec), decode_plan(job.plan), jobs.parts(name)
        (calls,) = (Path(path) for path in spec.reading.paths)
        made = {"answers": "", "errors": ""}
        if plan.began:
            why = Unanswered(f"batch_{status}", _WHY[status])
            for path in write_replies(calls, Path(job.output), parts, plan.part_rows, why):
                if path.stat().st_size:
                    shown = f"{PREFIX}{name}_{path.name}"
                    made[path.stem] = files.adopt(f"file-{name}-{path.stem}", shown, "batch_output", path, gathered).id
        took_s = gathered - plan.began if plan.began else 0.0
        made_rows = sum(part.read for part in parts)
        report = make_report(job, parts, spec.model, len(plan.files), plan.batch_rows, made_rows, took_s)
        ending = Ending(status, gathered, time.time(), made["answers"], made["errors"], faults)
        text = render_json(msgspec.structs.replace(report, ending=ending))
        if status == "cancelled":
            jobs.report(name, text)
        else:
            jobs.move(name, self._owner, _STATES[status], time.time(), faults[0].message if faults else "", text)
        shutil.rmtree(calls.parent, ignore_errors=True)
