"""Runs batches of calls, from their claim to the files of answers. Loaded when the first one comes, since tables need
memory that a server without batches has better use for.
"""

import asyncio
import contextlib
import logging
import shutil
import time
from pathlib import Path

import msgspec

from foretell.app.background import Background, deployment_of
from foretell.app.batch_view import PREFIX
from foretell.batch.calling import CallScorer
from foretell.batch.calls import write_calls
from foretell.batch.ending import Ending, Fault, Status
from foretell.batch.lines import BadCalls
from foretell.batch.owner import gone, this_process
from foretell.batch.replies import Unanswered, write_replies
from foretell.batch.report import make_report, render_json
from foretell.batch.run import JobRun, keep_lease, leave, while_held
from foretell.batch.source import Source
from foretell.batch.spec import Calling, JobSpec, Plan, decode_plan, decode_spec, encode
from foretell.batch.work import LocalCrew
from foretell.core.errors import ConfigError, Conflict, ForetellError, NotReady
from foretell.core.reference import parse_reference
from foretell.plane.plane import Plane
from foretell.server.openai import Calls
from foretell.store.job import JobInfo, State
from foretell.store.store import Store

log = logging.getLogger(__name__)

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


class CallRunner:
    """Answers batches over a plane, behind all others who ask it."""

    def __init__(self, plane: Plane, background: Background, store: Store) -> None:
        self._plane = plane
        self._background = background
        self._store = store
        self._calls = Calls(background)
        self._owner = this_process()

    async def run(self, name: str) -> None:
        """Bring a batch to its end, unless somebody else has it or this server ends."""
        jobs = self._store.jobs
        try:
            job = await asyncio.to_thread(jobs.claim, name, self._owner, time.time(), gone)
        except Conflict:
            await self._end_if_cancelled(name)
            return
        try:
            await while_held(jobs, name, self._owner, self._answer(job))
            await self._end(name, "completed")
        except BadCalls as error:
            await self._end(name, "failed", error.faults)
        except TimeoutError:
            await self._end(name, "expired")
        except (Exception, asyncio.CancelledError) as error:
            if await self._end_if_cancelled(name):
                pass
            elif isinstance(error, asyncio.CancelledError | Conflict):
                await self._leave(name)
            elif isinstance(error, PASSING):
                log.warning("batch %s%s has to wait: %s", PREFIX, name, error)
                await self._leave(name)
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
            crew = LocalCrew(spec, job.attempts, source, scorer)
            await JobRun(job, self._store.jobs, self._owner, source, crew, lambda progress: None).run()

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

    async def _end_if_cancelled(self, name: str) -> bool:
        """Whether it was cancelled. Gathers what it had, unless somebody else does so."""
        jobs = self._store.jobs
        if (await asyncio.to_thread(jobs.get, name)).state != "cancelled":
            return False
        with contextlib.suppress(Conflict):
            await asyncio.to_thread(jobs.claim_ending, name, self._owner, time.time(), gone)
            await self._end(name, "cancelled")
        return True

    async def _end(self, name: str, status: Status, faults: tuple[Fault, ...] = ()) -> None:
        """Gather what was answered, and say how it ended. It is not broken off, and may be done again after a kill."""
        work = asyncio.ensure_future(asyncio.to_thread(self._gather, name, status, faults))
        keeping = asyncio.create_task(keep_lease(self._store.jobs, name, self._owner))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait((work,))
            raise
        except Conflict:
            if status != "cancelled":
                await self._end_if_cancelled(name)
        except PASSING as error:
            log.warning("the answers of batch %s%s cannot be written, it is tried again: %s", PREFIX, name, error)
            await self._leave(name)
        except Exception as error:
            log.exception("the answers of batch %s%s could not be gathered", PREFIX, name)
            await asyncio.to_thread(leave, self._store.jobs, name, self._owner, error)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)  # a lost lease shows at the report

    async def _leave(self, name: str) -> None:
        """Give it back: whoever looks next goes on with it."""
        await asyncio.to_thread(leave, self._store.jobs, name, self._owner, asyncio.CancelledError())

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
            jobs.report(name, self._owner, text)
        else:
            jobs.move(name, self._owner, _STATES[status], time.time(), faults[0].message if faults else "", text)
        shutil.rmtree(calls.parent, ignore_errors=True)
