"""The bytes of a message as they are, as the one field `value`."""

from collections.abc import Mapping, Sequence

from foretell.core.errors import InvalidInput

FIELD = "value"


class BytesFormat:
    """For a model with one BYTES input, whatever it is called: `--map value=INPUT` is understood."""

    fields = (FIELD,)

    def decode(self, value: bytes) -> bytes:
        return value

    def column(self, rows: Sequence[bytes], name: str) -> list[bytes]:
        if name != FIELD:
            raise InvalidInput(f'a message of raw bytes has no field "{name}", only "{FIELD}"')
        return list(rows)

    def event(self, row: bytes) -> Mapping[str, bytes]:
        return {FIELD: row}
