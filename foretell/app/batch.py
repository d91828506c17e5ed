"""Batch jobs: a plane of their own around the model, without a server. Composes store, plane and the batch room."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from foretell.app.config import Config, ObservationSettings
from foretell.app.deployments import deployment_spec, generation_settings, with_draft
from foretell.app.telemetry import Telemetry
from foretell.batch.generating import PromptScorer
from foretell.batch.output import OutputFolder
from foretell.batch.owner import gone, this_process
from foretell.batch.prompts import PromptQuestion
from foretell.batch.question import layout_of, question_of
from foretell.batch.report import NAMES, Report, make_report, render_html, render_json
from foretell.batch.run import JobRun, Progress, leave
from foretell.batch.scoring import RowScorer, Scorer
from foretell.batch.source import Source
from foretell.batch.spec import (
    JobSpec,
    Plan,
    check_no_calls,
    check_same,
    check_unchanged,
    decode_plan,
    decode_spec,
    encode,
)
from foretell.core.errors import PackageError
from foretell.core.observation import Observation
from foretell.core.reference import Reference, parse_reference
from foretell.core.settings import CacheSettings
from foretell.fleet.launcher import Launcher, LocalProcess
from foretell.fleet.spec import MOST_REPLICAS
from foretell.plane.plane import Plane
from foretell.plane.spec import DeploymentSpec
from foretell.store.job import JobInfo
from foretell.store.store import Store

SLOTS = 3
"""Requests under way for each replica: one runs, one is in its socket, one waits."""

_NO_LIMIT = 2**40


def submit(store: Store, spec: JobSpec, source: Source, resume: bool = False) -> JobInfo:
    """The job that `spec` asks for: with `resume` the one that was begun, if there is one; otherwise a new one.

    Raises `InvalidInput` where the columns do not fit the model, `Conflict` where the output is somebody's already, or
    where the job to resume asked for something else.
    """
    package = store.fetch(store.resolve(parse_reference(spec.model)))
    schema = source.first_schema()
    layout_of(spec, question_of(spec, package.manifest, source, schema), source, schema)
    folder = spec.writing.folder
    before = store.jobs.by_output(folder)
    if resume and before is not None:
        check_same(before.id, decode_spec(before.spec), spec)
        check_unchanged(before.id, decode_plan(before.plan).files, source.seen)
        return msgspec.structs.replace(before, spec=encode(spec))
    OutputFolder(Path(folder)).check_free()
    return store.jobs.create(folder, encode(spec), encode(Plan(source.seen)), time.time())


class BatchService:
    """Runs jobs of a store. `observations` as of a server: nothing is kept unless they say so."""

    def __init__(self, config: Config, store: Store, launch: Launcher = LocalProcess) -> None:
        self._config = config
        self._store = store
        quiet = ObservationSettings(access_log="", folder=config.observations.folder)
        self._telemetry = Telemetry(quiet, tuple)
        self._bill: dict[str, float] = {}
        self._plane = Plane(launch, self._record)

    async def run(
        self, job: JobInfo, source: Source, tell: Callable[[Progress], None] = lambda progress: None
    ) -> Report:
        """Claim a job and bring it to its end. Raises why it could not; then it can be resumed."""
        check_no_calls(job.id, decode_spec(job.spec))
        jobs, owner = self._store.jobs, this_process()
        claimed = await asyncio.to_thread(jobs.claim, job.id, owner, time.time(), gone)
        claimed = msgspec.structs.replace(claimed, spec=job.spec)
        spec = decode_spec(claimed.spec)
        self._telemetry.start()
        try:
            scorer = await self._scorer(spec, source)
            run = JobRun(claimed, jobs, owner, source, scorer, tell)
            await run.run()
            return await asyncio.to_thread(self._finish, run, owner)
        except BaseException as error:
            leave(jobs, claimed.id, owner, error)
            raise
        finally:
            await self._plane.close(0.0)
            await asyncio.to_thread(self._telemetry.close)

    async def _scorer(self, spec: JobSpec, source: Source) -> Scorer:
        """The model in service, and what asks it."""
        reference = parse_reference(spec.model)
        deployment = await asyncio.to_thread(self._spec, reference, spec.digest)
        await self._plane.deploy(deployment)
        schema = await asyncio.to_thread(source.first_schema)
        question = question_of(spec, deployment.manifest, source, schema)
        replicas = deployment.replicas.count or MOST_REPLICAS
        dollars_per_second = deployment.replica_dollars_per_hour / 3600.0
        if isinstance(question, PromptQuestion):
            slots = replicas * deployment.generation.slots
            return PromptScorer(self._plane, reference, question, slots, self._spent, dollars_per_second)
        slots = SLOTS * replicas
        return RowScorer(self._plane, reference, question, slots, dollars_per_second)

    def _record(self, observation: Observation) -> None:
        """Every generation's cost is kept until its row asks for it."""
        if observation.tokens is not None:
            self._bill[observation.request_id] = observation.cost_dollars
        self._telemetry.record(observation)

    def _spent(self, request: str) -> float:
        return self._bill.pop(request, 0.0)

    def _spec(self, reference: Reference, digest: str) -> DeploymentSpec:
        """As it is served, but nothing is refused for want of room, cached or timed out."""
        info = self._store.resolve(reference)
        package = self._store.fetch(info)
        if info.digest != digest:
            raise PackageError(f"{info} is another package than the one that the job began with; start a new job")
        generation = with_draft(generation_settings(info.name, package, self._config), self._store)
        spec = deployment_spec(info.name, str(info.number), package, self._config, generation)
        batching = msgspec.structs.replace(spec.batching, max_queue_rows=_NO_LIMIT, timeout_ms=0.0)
        return msgspec.structs.replace(spec, batching=batching, cache=CacheSettings())

    def _finish(self, run: JobRun, owner: str) -> Report:
        """Write the report, then say that the job is complete."""
        parts = self._store.jobs.parts(run.job.id)
        progress = run.progress
        report = make_report(
            run.job,
            parts,
            run.spec.model,
            len(run.plan.files),
            run.plan.batch_rows,
            progress.read - progress.before,
            time.monotonic() - progress.began,
        )
        text = render_json(report)
        output = OutputFolder(Path(run.spec.writing.folder))
        for name, page in zip(NAMES, (text, render_html(report, parts)), strict=True):
            output.write_text(name, page)
        self._store.jobs.move(run.job.id, owner, "completed", time.time(), report=text)
        return report
