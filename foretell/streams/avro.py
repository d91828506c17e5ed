"""Avro records by a schema file, by fastavro. Understands the five bytes that Confluent's serializers put first."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fastavro
from fastavro.types import AvroMessage

from foretell.core.errors import ConfigError, InvalidInput

MAGIC = b"\x00"
"""What a message framed by Confluent's serializers begins with; four bytes of a schema's number follow."""
_FRAME = 5


class AvroFormat:
    """One record a message. `framed`: the five bytes of a schema registry come first; the registry is not asked, the
    schema is that of the file.
    """

    def __init__(self, schema: Path, framed: bool = False) -> None:
        try:
            self._schema = fastavro.schema.load_schema(schema)
        except Exception as error:
            raise ConfigError(f'"{schema}" is no Avro schema: {error}') from None
        kind = self._schema.get("type") if isinstance(self._schema, dict) else self._schema
        if kind != "record":
            raise ConfigError(f'"{schema}" describes {kind}, a message needs a record')
        self.fields = tuple(field["name"] for field in self._schema["fields"])
        self._framed = framed

    def decode(self, value: bytes) -> AvroMessage:
        if self._framed:
            if len(value) < _FRAME or not value.startswith(MAGIC):
                raise InvalidInput("not framed as a schema registry's messages are: the first byte is not 0")
            value = value[_FRAME:]
        stream = io.BytesIO(value)
        try:
            row = fastavro.schemaless_reader(stream, self._schema, None)
        except Exception as error:  # fastavro raises whatever its reader met
            raise InvalidInput(
                f"not the Avro record that the schema describes: {type(error).__name__} {error}"
            ) from None
        if stream.tell() != len(value):
            raise InvalidInput(f"{len(value) - stream.tell()} bytes are left after the Avro record: another schema?")
        return row

    def column(self, rows: Sequence[Any], name: str) -> list[Any]:
        return [row[name] for row in rows]

    def event(self, row: Any) -> Mapping[str, Any]:
        fields: Mapping[str, Any] = row
        return fields
