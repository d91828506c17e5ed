"""Names of formats → the formats. The only place that knows which file reads which."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from foretell.core.errors import ConfigError, did_you_mean
from foretell.streams.bytes_format import BytesFormat
from foretell.streams.json_format import JsonFormat
from foretell.streams.rows import Format

FormatName = Literal["json", "bytes", "avro", "confluent-avro", "protobuf"]


def open_format(name: FormatName, schema: str, fields: Sequence[str]) -> Format:
    """`schema`: FILE, or FILE#MESSAGE for Protobuf. `fields`: those that are read; () where whole events are.

    Raises `ConfigError` where the schema is missing, superfluous or unreadable.
    """
    known = get_args(FormatName)
    if name not in known:
        raise ConfigError(f'unknown format "{name}". {did_you_mean(name, known)}')
    if name in ("json", "bytes"):
        if schema:
            raise ConfigError(f"{name} needs no schema; leave {schema} out, or name the format with --format")
        return JsonFormat(fields) if name == "json" else BytesFormat()
    if not schema:
        raise ConfigError(f"{name} needs a schema; name its file with --schema")
    file, _, message = schema.partition("#")
    if not Path(file).is_file():
        raise ConfigError(f"there is no file {file}, which --schema names")
    form: Format
    if name == "protobuf":
        form = _module("protobuf", "protobuf").ProtobufFormat(Path(file), message)
    else:
        form = _module("avro", "fastavro").AvroFormat(Path(file), name == "confluent-avro")
    return form


def _module(name: str, needs: str) -> Any:
    try:
        return importlib.import_module(f"foretell.streams.{name}")
    except ModuleNotFoundError:
        raise ConfigError(f'the format {name} needs {needs}: pip install "foretell[{name}]"') from None
