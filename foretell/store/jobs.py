"""Jobs and their parts in the database. One process at a time runs a job: it holds a lease that it must renew, and
nothing is written for a job but by the holder of its lease.
"""

import uuid
from collections.abc import Callable

import msgspec
import sqlalchemy as sa

from foretell.core.errors import Conflict, NotFound, did_you_mean
from foretell.store.database import Database
from foretell.store.job import JobInfo, JobPart, State, Totals, check_move
from foretell.store.schema import JOB_PARTS, JOBS

LEASE_S = 30.0
"""How long a lease lasts; its holder renews it several times within."""

_PART_FIELDS = [field.name for field in msgspec.structs.fields(JobPart)]
_SUMS = [field.name for field in msgspec.structs.fields(Totals) if field.name != "parts"]


class Jobs:
    """Methods block; threads may share one. Times are Unix seconds and passed in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # What there is

    def get(self, job: str) -> JobInfo:
        """One job by its id or by the start of it. Raises `NotFound`."""
        with self._database.read() as connection:
            found = connection.execute(sa.select(JOBS).where(JOBS.c.id.startswith(job, autoescape=True))).all()
            if len(found) == 1:
                return _job(found[0])
            known = list(connection.execute(sa.select(JOBS.c.id)).scalars())
        if found:
            raise NotFound(f'"{job}" is the start of {len(found)} jobs; write more of it')
        raise NotFound(f'no job "{job}". {did_you_mean(job, known)}')

    def all(self) -> list[JobInfo]:
        """Every job, newest first."""
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(sa.select(JOBS).order_by(JOBS.c.created.desc()))]

    def unreported(self) -> list[JobInfo]:
        """Jobs that are not at their end, and cancelled ones of which nobody has written a report, oldest first."""
        query = sa.select(JOBS).where(JOBS.c.report == "", JOBS.c.state != "failed").order_by(JOBS.c.created)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def by_output(self, output: str) -> JobInfo | None:
        """The newest job that writes to `output`."""
        query = sa.select(JOBS).where(JOBS.c.output == output).order_by(JOBS.c.created.desc()).limit(1)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return _job(row) if row else None

    def parts(self, job: str) -> list[JobPart]:
        """The commit records of a job, in the order of the input."""
        query = sa.select(*(JOB_PARTS.c[name] for name in _PART_FIELDS)).where(JOB_PARTS.c.job == job)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(JOB_PARTS.c.file, JOB_PARTS.c.part)).mappings().all()
        return [JobPart(**{**row, "names": tuple(filter(None, row["names"].split("\n")))}) for row in rows]

    def totals(self, job: str) -> Totals:
        """What the recorded parts of a job add up to."""
        sums = [sa.func.coalesce(sa.func.sum(JOB_PARTS.c[name]), 0).label(name) for name in _SUMS]
        query = sa.select(sa.func.count().label("parts"), *sums).where(JOB_PARTS.c.job == job)
        with self._database.read() as connection:
            return Totals(**connection.execute(query).mappings().one())

    # What changes

    def create(self, output: str, spec: str, plan: str, now: float) -> JobInfo:
        """A new job that waits to be claimed. Raises `Conflict` if one that can still run writes to `output`."""
        info = JobInfo(uuid.uuid4().hex[:12], output, spec, plan, created=now, updated=now)
        with self._database.write(_lock(output), counts=False) as connection:
            query = sa.select(JOBS.c.id, JOBS.c.state).where(JOBS.c.output == output)
            for row in connection.execute(query):
                if row.state not in ("completed", "cancelled"):
                    raise Conflict(f"job {row.id} ({row.state}) writes to {output}; resume it, or cancel it")
            connection.execute(JOBS.insert().values(msgspec.structs.asdict(info)))
        return info

    def claim(self, job: str, owner: str, now: float, gone: Callable[[str], bool], spec: str = "") -> JobInfo:
        """Take the lease and the state "running"; `spec` is what is asked from now on, "" what was asked before. Raises
        `Conflict` if somebody else holds the lease (and is not `gone`, as far as one can know), or if the job is over.
        """
        with self._database.write(_lock(job), counts=False) as connection:
            info = _read(connection, job)
            check_move(job, info.state, "running")
            _check_free(info, owner, now, gone)
            taken = msgspec.structs.replace(
                info,
                state="running",
                spec=spec or info.spec,
                owner=owner,
                lease_until=now + LEASE_S,
                attempts=info.attempts + 1,
                updated=now,
                reason="",
            )
            _write(connection, taken)
        return taken

    def renew(self, job: str, owner: str, now: float) -> None:
        """Keep the lease. Raises `Conflict` if it was lost or the job was cancelled."""
        with self._database.write(_lock(job), counts=False) as connection:
            info = _held(connection, job, owner)
            _write(connection, msgspec.structs.replace(info, lease_until=now + LEASE_S))

    def plan(self, job: str, owner: str, plan: str) -> None:
        """Write down what was decided at the start. Raises `Conflict` if the lease was lost."""
        with self._database.write(_lock(job), counts=False) as connection:
            _write(connection, msgspec.structs.replace(_held(connection, job, owner), plan=plan))

    def record(self, job: str, owner: str, part: JobPart) -> None:
        """Commit a part. Raises `Conflict` if the lease was lost or the job was cancelled: then it is not committed."""
        with self._database.write(_lock(job), counts=False) as connection:
            _held(connection, job, owner)
            values = {**msgspec.structs.asdict(part), "names": "\n".join(part.names)}
            connection.execute(JOB_PARTS.insert().values(job=job, **values))

    def move(self, job: str, owner: str, state: State, now: float, reason: str = "", report: str = "") -> None:
        """Go on to a state; whatever does not run gives its lease back. Raises `Conflict` if the lease was lost."""
        with self._database.write(_lock(job), counts=False) as connection:
            info = _held(connection, job, owner)
            check_move(job, info.state, state)
            keeps = state in ("running", "finalizing")
            moved = msgspec.structs.replace(
                info,
                state=state,
                updated=now,
                reason=reason,
                report=report or info.report,
                owner=owner if keeps else "",
                lease_until=info.lease_until if keeps else 0.0,
            )
            _write(connection, moved)

    def cancel(self, job: str, now: float) -> JobInfo:
        """End a job for good, whoever runs it: that process notices when it next writes. Its parts stay."""
        with self._database.write(_lock(job), counts=False) as connection:
            info = _read(connection, job)
            check_move(job, info.state, "cancelled")
            cancelled = msgspec.structs.replace(info, state="cancelled", updated=now, owner="", lease_until=0.0)
            _write(connection, cancelled)
        return cancelled

    def claim_ending(self, job: str, owner: str, now: float, gone: Callable[[str], bool]) -> JobInfo:
        """Take the lease of a cancelled job, to say what became of it. Raises `Conflict` if somebody else does that."""
        with self._database.write(_lock(job), counts=False) as connection:
            info = _read(connection, job)
            if info.state != "cancelled" or info.report:
                raise Conflict(f"job {job} is {info.state}{' and has its report' if info.report else ''}")
            _check_free(info, owner, now, gone)
            taken = msgspec.structs.replace(info, owner=owner, lease_until=now + LEASE_S)
            _write(connection, taken)
        return taken

    def report(self, job: str, owner: str, report: str) -> None:
        """Say what became of a cancelled job, and give its lease back. Raises `Conflict` if the lease was lost."""
        with self._database.write(_lock(job), counts=False) as connection:
            info = _held(connection, job, owner)
            _write(connection, msgspec.structs.replace(info, report=report, owner="", lease_until=0.0))


def _lock(key: str) -> str:
    """Jobs have locks of their own, apart from those of models."""
    return f"job:{key}"


def _job(row: sa.Row) -> JobInfo:
    return JobInfo(**row._mapping)


def _read(connection: sa.Connection, job: str) -> JobInfo:
    row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job)).first()
    if row is None:
        raise NotFound(f'no job "{job}"')
    return _job(row)


def _write(connection: sa.Connection, info: JobInfo) -> None:
    connection.execute(JOBS.update().where(JOBS.c.id == info.id).values(msgspec.structs.asdict(info)))


def _check_free(info: JobInfo, owner: str, now: float, gone: Callable[[str], bool]) -> None:
    if info.owner not in ("", owner) and info.lease_until > now and not gone(info.owner):
        raise Conflict(
            f"job {info.id} is run by another process ({info.owner}), whose lease ends in"
            f" {info.lease_until - now:.0f} s. Wait for it, or end it"
        )


def _held(connection: sa.Connection, job: str, owner: str) -> JobInfo:
    info = _read(connection, job)
    if info.owner != owner and info.state == "cancelled":
        raise Conflict(f"job {job} was cancelled")
    if info.owner != owner:
        raise Conflict(f"job {job} is run by another process now ({info.owner or 'nobody'}); this one stops")
    return info
