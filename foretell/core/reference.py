"""References: how people name a model — `name`, `name@3`, `name@live`, a path or a URL."""

import re

import msgspec

from foretell.core.errors import InvalidInput

_REFERENCE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(@(?P<selector>[A-Za-z0-9][A-Za-z0-9._-]*))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Reference(msgspec.Struct, frozen=True):
    """`selector` is a version number ("3"), an alias ("live"), or empty for the default."""

    name: str
    selector: str = ""

    @property
    def version(self) -> int | None:
        return int(self.selector) if self.selector.isdigit() else None

    def __str__(self) -> str:
        return f"{self.name}@{self.selector}" if self.selector else self.name


def parse_reference(text: str) -> Reference:
    """Parse `name`, `name@3` or `name@alias`. Raises `InvalidInput` that says what a reference looks like."""
    match = _REFERENCE.fullmatch(text)
    if not match:
        raise InvalidInput(f'"{text}" is not a reference; write name, name@3 or name@alias')
    return Reference(match["name"], match["selector"] or "")


def check_name(name: str) -> str:
    """Return `name` if it can name a model or alias, else raise `InvalidInput`."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f'"{name}" cannot be a name; use up to 100 letters, digits, ".", "_" and "-", starting with a'
            " letter or digit"
        )
    return name
