"""What the store says about a version and about the moves of an alias. Plain values."""

from enum import Enum
from typing import Final

import msgspec


class VersionInfo(msgspec.Struct, frozen=True):
    """A registered version. `number` counts 1, 2, 3 … within `name` and is never given twice.

    `created` is UTC in ISO 8601. `unchanged` is true on the answer of an `add` that found the newest version
    to have the same contents already.
    """

    name: str
    number: int
    digest: str
    created: str
    runtime: str
    unchanged: bool = False

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"


class AliasChange(msgspec.Struct, frozen=True):
    """One move of an alias: from version `before` to `after` (None: it did not, or does not, exist)."""

    name: str
    alias: str
    before: int | None
    after: int | None
    at: str


class Expected(Enum):
    """See `ANY`."""

    ANY = "any"


ANY: Final = Expected.ANY
"""As `expected` of an alias change: whatever the alias says now."""
