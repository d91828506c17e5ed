"""What a batch job is asked to do, and what was decided when it began. Values, kept as JSON in the job."""

from typing import Literal

import msgspec

from foretell.core.column_map import ColumnMap
from foretell.core.errors import Conflict

OutputFormat = Literal["parquet", "csv", "jsonl"]

PROTOCOL = "batch"
"""How requests of jobs are called in observations."""

MAY_CHANGE = ("max_errors", "batch_rows", "part_rows")
"""What may be asked otherwise when a job is resumed (the sizes stay as they were planned)."""


class Reading(msgspec.Struct, frozen=True):
    """`paths`: files, folders, globs or URLs. `where`: a filter of rows (see `tables.where`), empty for none."""

    paths: tuple[str, ...]
    columns: ColumnMap = ColumnMap()
    where: str = ""


class Writing(msgspec.Struct, frozen=True):
    """`keep`: the columns that go along; None: those that feed no input."""

    folder: str
    format: OutputFormat = "parquet"
    keep: tuple[str, ...] | None = None


class Label(msgspec.Struct, frozen=True):
    """The column that holds the truth, and the output that is compared with it ("": the one that fits)."""

    column: str
    output: str = ""


class Prompting(msgspec.Struct, frozen=True):
    """For a language model. `template` has {column} in it; `schema` is a JSON schema whose properties become columns,
    empty for plain text. `chat`: the prompt is what a user says; otherwise a text to be continued.
    """

    template: str
    schema: str = ""
    system: str = ""
    chat: bool = True
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None


class Calling(msgspec.Struct, frozen=True):
    """For calls of the server's own API: each row is a document for `endpoint`. `source` is the file as it was
    uploaded, by the id `file`; `expires`: Unix seconds after which nothing is asked any more.
    """

    endpoint: str
    file: str
    source: str
    window: str
    expires: float
    metadata: dict[str, str] = {}


class JobSpec(msgspec.Struct, frozen=True):
    """A job: `model` is name@version; for calls what they name, and the version is that of the moment. `max_errors`:
    more failed rows than this stop the job; None: any number. `batch_rows` of a request and `part_rows` of a part are
    chosen by trial where they are 0.
    """

    model: str
    digest: str
    reading: Reading
    writing: Writing
    label: Label | None = None
    prompting: Prompting | None = None
    max_errors: int | None = None
    batch_rows: int = 0
    part_rows: int = 0
    calling: Calling | None = None


class Seen(msgspec.Struct, frozen=True):
    """An input file as it was when the job began; `stamp` differs when its contents do."""

    path: str
    size: int
    stamp: str


class Plan(msgspec.Struct, frozen=True):
    """What stays the same however often a job is resumed: its files in order, rows of a part and of a request; for
    calls, how many there are and when they were found good.
    """

    files: tuple[Seen, ...]
    part_rows: int = 0
    batch_rows: int = 0
    calls: int = 0
    began: float = 0.0


def encode(value: JobSpec | Plan) -> str:
    return msgspec.json.encode(value).decode()


def decode_spec(text: str) -> JobSpec:
    return msgspec.json.decode(text, type=JobSpec)


def decode_plan(text: str) -> Plan:
    return msgspec.json.decode(text, type=Plan)


def check_no_calls(job: str, spec: JobSpec) -> None:
    """Raise `Conflict` for calls of the server's API, which only a server can go on with."""
    if spec.calling is not None:
        raise Conflict(
            f"job {job} is a batch of calls: any server of this store that serves {spec.model or 'its model'} goes on"
            " with it by itself (foretell serve)"
        )


def check_same(job: str, before: JobSpec, now: JobSpec) -> None:
    """Raise `Conflict` that names what differs from the job that is to be resumed."""
    for field in msgspec.structs.fields(JobSpec):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if old != new and field.name not in MAY_CHANGE:
            raise Conflict(
                f"job {job} writes there, and its {field.name} was {_told(old)}, not {_told(new)}. Resume it with"
                f" `foretell jobs resume {job}`, or give another output folder"
            )


def check_unchanged(job: str, before: tuple[Seen, ...], now: tuple[Seen, ...]) -> None:
    """Raise `Conflict` that names the first file which is not what it was when the job began."""
    old, new = ({seen.path: seen for seen in files} for files in (before, now))
    changed = [path for path in old if path in new and new[path] != old[path]]
    for how, paths in (
        ("is gone", [path for path in old if path not in new]),
        ("is new", [path for path in new if path not in old]),
        ("has changed", changed),
    ):
        if paths:
            raise Conflict(
                f"{paths[0]} {how} since job {job} began ({len(paths)} such files): its output would be of two inputs."
                " Restore the input, or start a new job with another output folder"
            )


def _told(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
