"""JSON objects, one a message. Each is decoded alone, so that none can spill into the next. Bytes that are no text are
`{"b64": …}`, as they are in answers.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from foretell.core.errors import InvalidInput

_ANY = msgspec.json.Decoder(dict[str, Any])


class JsonFormat:
    """`fields` are read and must be there, others are skipped; without any, whole objects are read."""

    def __init__(self, fields: Sequence[str] = ()) -> None:
        self.fields = tuple(dict.fromkeys(fields))
        self._place = {name: f"f{number}" for number, name in enumerate(self.fields)}
        # Fields may have any name, attributes of a struct may not.
        row = msgspec.defstruct(
            "Row",
            [(place, Any) for place in self._place.values()],
            rename={place: name for name, place in self._place.items()},
            gc=False,
        )
        self._decode = msgspec.json.Decoder(row).decode if self.fields else _ANY.decode

    def decode(self, value: bytes) -> Any:
        try:
            return self._decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidInput(f"not the JSON that this stream expects: {error}") from None

    def column(self, rows: Sequence[Any], name: str) -> list[Any]:
        if self.fields:
            values = list(map(attrgetter(self._place[name]), rows))
        else:
            try:
                values = [row[name] for row in rows]
            except KeyError:
                raise InvalidInput(f'the event has no field "{name}"') from None
        return [_bytes(value, name) for value in values] if dict in set(map(type, values)) else values

    def event(self, row: Any) -> Mapping[str, Any]:
        if self.fields:
            return {name: getattr(row, place) for name, place in self._place.items()}
        fields: Mapping[str, Any] = row
        return fields


def _bytes(value: Any, name: str) -> Any:
    """What `{"b64": …}` stands for; anything else as it is."""
    if not isinstance(value, dict) or set(value) != {"b64"}:
        return value
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise InvalidInput(f'field "{name}": b64 is not base64 ({error})') from None
