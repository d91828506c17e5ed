"""A batch job at rest: its state machine, its parts and what they add up to. Plain values; knows no database."""

from typing import Literal

import msgspec

from foretell.core.errors import Conflict

State = Literal["queued", "running", "finalizing", "completed", "failed", "cancelled"]

NEXT: dict[State, tuple[State, ...]] = {
    "queued": ("running", "cancelled"),
    "running": ("running", "queued", "finalizing", "failed", "cancelled"),
    "finalizing": ("running", "queued", "completed", "failed", "cancelled"),
    "failed": ("running", "cancelled"),
    "completed": (),
    "cancelled": (),
}
"""Where a job may go from each state. "queued" waits for somebody to run it; "running" again is a resume after a
crash, when the state still says what the dead process did.
"""


def check_move(job: str, before: State, after: State) -> None:
    """Raise `Conflict` if a job may not go from `before` to `after`."""
    if after not in NEXT[before]:
        remedy = "; start a new job with another output folder" if after == "running" else ""
        raise Conflict(f"job {job} is {before}: it cannot become {after}{remedy}")


class JobPart(msgspec.Struct, frozen=True):
    """The commit record of one part: it exists exactly when the part's files are complete and in their place.

    `file`, `part`: which rows of the input, see `batch.protocol`. `names`: of its files below the output folder.
    `read`: rows taken from the input; `rows` of them are in the output, `errors` in the errors file, the rest was
    filtered out. `measures`: what of accuracy was counted (JSON). `finished`: Unix seconds.
    """

    file: int
    part: int
    names: tuple[str, ...] = ()
    read: int = 0
    rows: int = 0
    errors: int = 0
    size: int = 0
    compute_s: float = 0.0
    dollars: float = 0.0
    measures: str = ""
    finished: float = 0.0


class Totals(msgspec.Struct, frozen=True):
    """What the recorded parts of a job add up to."""

    parts: int = 0
    read: int = 0
    rows: int = 0
    errors: int = 0
    size: int = 0
    compute_s: float = 0.0
    dollars: float = 0.0


class JobInfo(msgspec.Struct, frozen=True):
    """A job. `spec` (what was asked), `plan` (what was decided at its start) and `report` are JSON that the batch
    room reads. `attempts`: how often it was started or resumed. `reason`: why it failed. Times are Unix seconds;
    `lease_until` is when whoever runs it must have said so again.
    """

    id: str
    output: str
    spec: str
    plan: str
    state: State = "queued"
    created: float = 0.0
    updated: float = 0.0
    attempts: int = 0
    owner: str = ""
    lease_until: float = 0.0
    reason: str = ""
    report: str = ""
