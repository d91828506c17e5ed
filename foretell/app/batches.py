"""OpenAI's batches on a running server: jobs whose rows are calls of its own API, answered behind the online traffic.

A batch is a job of the store, so it survives the server; whatever a server finds that nobody runs, it goes on with.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import shutil
import time
import uuid
from typing import Protocol

from foretell.app.background import Background
from foretell.app.batch_view import PREFIX, show
from foretell.batch.lines import model_of
from foretell.batch.spec import Calling, JobSpec, Plan, Reading, Writing, decode_spec, encode
from foretell.core.errors import Conflict, ForetellError, InvalidInput, NotFound, NotReady
from foretell.core.reference import parse_reference
from foretell.plane.plane import Plane
from foretell.server.openai_batches import BatchAsked, BatchObject
from foretell.store.job import JobInfo, Totals
from foretell.store.store import Store

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""How often the store is asked for batches that nobody runs."""


class Runner(Protocol):
    """Brings batches to their end."""

    async def run(self, name: str) -> None: ...


class Batches:
    """Implements `server.openai_batches.BatchJobs`. `start` goes on with what was left; `stop` leaves the rest."""

    def __init__(self, plane: Plane, background: Background, store: Store) -> None:
        self._plane = plane
        self._background = background
        self._store = store
        self._runner: Runner | None = None
        self._stopped = False
        self._running: dict[str, asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Give back what runs, so that it is gone on with later or elsewhere."""
        self._stopped = True
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
        if job.report:
            raise Conflict(f'batch "{name}" is {self._shown(job).status}; there is nothing to cancel')
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
        source = folder / "uploaded.jsonl"
        try:
            folder.mkdir(parents=True)
            with contextlib.suppress(OSError):  # a file system without links
                os.link(path, source)
            if not source.exists():
                shutil.copyfile(path, source)
        except OSError as error:
            raise NotReady(f"{folder} cannot be made: {error.strerror or error}. Free some space, or retry") from error
        calling = Calling(asked.endpoint, info.id, str(source), asked.window, now + asked.window_s, asked.metadata)
        writing = Writing(str(folder / "parts"), keep=("custom_id",))
        spec = JobSpec(model_of(source), "", Reading((str(folder / "calls.parquet"),)), writing, calling=calling)
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
            self._plane.describe(parse_reference(spec.model))
        except ForetellError:
            return False
        return True

    def _begin(self, job: JobInfo) -> None:
        if job.id not in self._running and not self._stopped:
            task = self._running[job.id] = asyncio.create_task(self._run(job.id))
            task.add_done_callback(lambda _: self._running.pop(job.id, None))

    async def _run(self, name: str) -> None:
        if self._runner is None:
            module = await asyncio.to_thread(importlib.import_module, "foretell.app.batch_calls")
            self._runner = module.CallRunner(self._plane, self._background, self._store)
        await self._runner.run(name)
