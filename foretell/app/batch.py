"""Batch jobs: a plane of their own around the model, without a server. Composes store, plane and the batch room."""

import asyncio
import contextlib
import importlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from foretell.app.config import Config
from foretell.app.deployments import deployment_spec, generation_settings, replica_settings, with_draft
from foretell.app.scoring import scoring, scoring_there
from foretell.batch.output import OutputFolder
from foretell.batch.owner import gone, this_process
from foretell.batch.question import layout_of, question_of
from foretell.batch.report import NAMES, Report, make_report, render_html, render_json
from foretell.batch.run import JobRun, Progress, leave, while_held
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
from foretell.batch.work import Crew, LocalCrew
from foretell.core.errors import ConfigError, PackageError
from foretell.core.reference import Reference, parse_reference
from foretell.core.settings import CacheSettings
from foretell.fleet.launcher import Launcher, LocalProcess
from foretell.plane.spec import DeploymentSpec
from foretell.store.job import JobInfo
from foretell.store.store import Store

_NO_LIMIT = 2**40


def submit(store: Store, spec: JobSpec, source: Source, resume: bool = False) -> JobInfo:
    """The job that `spec` asks for: with `resume` the one that was begun, if there is one; otherwise a new one.

    Raises `InvalidInput` where the columns do not fit the model, `Conflict` where the output is somebody's already, or
    where the job to resume asked for something else.
    """
    package = store.fetch(store.resolve(parse_reference(spec.model)))
    schema = source.schema
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
    """Runs jobs of a store: in this process, or with `ray` (the address of a cluster; "": the one that is here, or
    a new one) on workers there. `observations` as of a server: nothing is kept unless they say so.
    """

    def __init__(self, config: Config, store: Store, launch: Launcher = LocalProcess, ray: str | None = None) -> None:
        self._config = config
        self._store = store
        self._launch = launch
        self._ray = ray

    async def run(
        self, job: JobInfo, source: Source, tell: Callable[[Progress], None] = lambda progress: None
    ) -> Report:
        """Claim a job and bring it to its end. Raises why it could not; then it can be resumed."""
        check_no_calls(job.id, decode_spec(job.spec))
        jobs, owner = self._store.jobs, this_process()
        workers = None if self._ray is None else _workers()
        claimed = await asyncio.to_thread(jobs.claim, job.id, owner, time.time(), gone, job.spec)
        try:  # loading a model may take longer than a lease lasts
            run = await while_held(jobs, claimed.id, owner, self._run(claimed, owner, source, workers, tell))
            return await asyncio.to_thread(self._finish, run, owner)
        except BaseException as error:
            leave(jobs, claimed.id, owner, error)
            raise

    async def _run(
        self, job: JobInfo, owner: str, source: Source, workers: Any, tell: Callable[[Progress], None]
    ) -> JobRun:
        async with self._crew(job, source, workers) as crew:
            run = JobRun(job, self._store.jobs, owner, source, crew, tell)
            await run.run()
        return run

    @contextlib.asynccontextmanager
    async def _crew(self, job: JobInfo, source: Source, workers: Any) -> AsyncIterator[Crew]:
        """Whoever does the parts, with the model in service. `workers` is the module that knows Ray, or None."""
        spec = decode_spec(job.spec)
        deployment = await asyncio.to_thread(self._spec, parse_reference(spec.model), spec.digest)
        observations = self._config.observations
        if workers is None:
            async with scoring(deployment, spec, observations, source, self._launch) as scorer:
                yield LocalCrew(spec, job.attempts, source, scorer)
            return
        schema = await asyncio.to_thread(lambda: source.schema)
        question = question_of(spec, deployment.manifest, source, schema)
        charge = workers.Charge(spec, job.attempts, source, partial(scoring_there, deployment, spec, observations))
        count = replica_settings(deployment.name, deployment.manifest, self._config).count
        crew = workers.RayCrew(self._ray, charge, question, count, deployment.replicas.threads)
        try:
            await crew.open()
            yield crew
        finally:
            await crew.close()

    def _spec(self, reference: Reference, digest: str) -> DeploymentSpec:
        """As it is served, but nothing is refused for want of room, cached or timed out. Rows come as batches already:
        replicas need not warm up, and keep memory, for larger ones.
        """
        info = self._store.resolve(reference)
        package = self._store.fetch(info)
        if info.digest != digest:
            raise PackageError(f"{info} is another package than the one that the job began with; start a new job")
        generation = with_draft(generation_settings(info.name, package, self._config), self._store)
        spec = deployment_spec(info.name, str(info.number), package, self._config, generation)
        batching = msgspec.structs.replace(spec.batching, max_batch_size=1, max_queue_rows=_NO_LIMIT, timeout_ms=0.0)
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
            progress.ended - progress.began,
        )
        text = render_json(report)
        output = OutputFolder(Path(run.spec.writing.folder))
        for name, page in zip(NAMES, (text, render_html(report, parts)), strict=True):
            output.write_text(name, page)
        self._store.jobs.move(run.job.id, owner, "completed", time.time(), report=text)
        return report


def _workers() -> Any:
    try:
        return importlib.import_module("foretell.batch.ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError(
            "--on ray needs the Python package ray, which is not installed here: pip install 'foretell[ray]' (on every"
            " machine of the cluster), or leave --on out"
        ) from None
