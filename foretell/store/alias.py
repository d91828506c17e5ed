"""Aliases: names that move between versions by compare-and-set, with every move in the history."""

import sqlalchemy as sa

from foretell.core.errors import Conflict, InvalidInput, NotFound
from foretell.core.reference import check_name
from foretell.store.schema import ALIAS_HISTORY, ALIASES
from foretell.store.version import ANY, AliasChange, Expected


def check_alias(alias: str) -> str:
    """Return `alias` if it can be one; `InvalidInput` if it reads as a version number."""
    if alias.isdigit():
        raise InvalidInput(f'"{alias}" cannot be an alias: name@{alias} means version {alias}')
    return check_name(alias)


def read_aliases(connection: sa.Connection, name: str) -> dict[str, int]:
    """Alias → version number of one model."""
    query = sa.select(ALIASES.c.alias, ALIASES.c.number).where(ALIASES.c.name == name).order_by(ALIASES.c.alias)
    return {row.alias: row.number for row in connection.execute(query)}


def read_history(connection: sa.Connection, name: str) -> list[AliasChange]:
    """Every move of every alias of one model, oldest first."""
    query = sa.select(ALIAS_HISTORY).where(ALIAS_HISTORY.c.name == name).order_by(ALIAS_HISTORY.c.id)
    return [AliasChange(r.name, r.alias, r.before, r.after, r.at) for r in connection.execute(query)]


def move_alias(
    connection: sa.Connection, name: str, alias: str, after: int | None, expected: int | Expected | None, at: str
) -> AliasChange:
    """Point `alias` at version `after`, or drop it (None), if it says `expected` now; write the history.

    The caller holds the model's lock and has checked that `after` exists. Raises `Conflict` with the present
    value if it is not the expected one, `NotFound` when dropping an alias that does not exist.
    """
    before = read_aliases(connection, name).get(alias)
    if expected is not ANY and before != expected:
        raise Conflict(
            f"{name}@{alias} is {_text(before)}, not {_text(expected)} as expected: somebody moved it first."
            " Look again and decide again"
        )
    if after is None and before is None:
        raise NotFound(f'"{name}" has no alias "{alias}"')
    here = (ALIASES.c.name == name) & (ALIASES.c.alias == alias)
    if after is None:
        connection.execute(ALIASES.delete().where(here))
    elif before is None:
        connection.execute(ALIASES.insert().values(name=name, alias=alias, number=after))
    else:
        connection.execute(ALIASES.update().where(here).values(number=after))
    if before != after:
        connection.execute(ALIAS_HISTORY.insert().values(name=name, alias=alias, before=before, after=after, at=at))
    return AliasChange(name, alias, before, after, at)


def _text(number: int | Expected | None) -> str:
    return f"version {number}" if isinstance(number, int) else "unset"
