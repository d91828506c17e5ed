"""How calls of the server's API end: values that whoever shows them reads without knowing tables."""

from typing import Literal

import msgspec

Status = Literal["completed", "failed", "expired", "cancelled"]


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is wrong with a file of calls. `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Ending(msgspec.Struct, frozen=True):
    """How calls of the server's API came to their end, and the files that hold the answers ("": there are none)."""

    status: Status
    gathered: float
    ended: float
    answers: str = ""
    errors: str = ""
    faults: tuple[Fault, ...] = ()


class Ended(msgspec.Struct, frozen=True):
    """What a job's report says of its calls (see `batch.report`)."""

    rows: int
    errors: int
    ending: Ending


class Spent(msgspec.Struct):
    """What a call took of the replicas."""

    compute_s: float = 0.0
    dollars: float = 0.0
