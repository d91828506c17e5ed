"""Rows of a table → prompts of a language model, and its texts → typed columns. Pure; knows no plane."""

from collections.abc import Sequence
from string import Formatter
from typing import Any

import msgspec
import pyarrow as pa

from foretell.batch.spec import Prompting
from foretell.core.errors import InvalidInput, did_you_mean
from foretell.core.generation import Chat, GenerateRequest, Grammar, Sampling, Stops
from foretell.tables.values import is_list, plain

TEXT = "text"
"""The column of what a model says where no schema names others."""

COUNTS = pa.schema([("finish_reason", pa.string()), ("prompt_tokens", pa.int32()), ("completion_tokens", pa.int32())])
"""Columns of every answer."""

_TYPES = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}


class PromptQuestion:
    """Of a language model: a template with {column} in it, and what its answers look like.

    Raises `InvalidInput` for a template or a schema that cannot be used.
    """

    def __init__(self, prompting: Prompting) -> None:
        self.prompting = prompting
        self._pieces = _parse(prompting.template)
        self.reads: Sequence[str] = tuple(dict.fromkeys(name for _, name in self._pieces if name is not None))
        self._answers = _columns(prompting.schema) if prompting.schema else pa.schema([(TEXT, pa.string())])

    @property
    def makes(self) -> pa.Schema:
        return pa.schema([*self._answers, *COUNTS])

    def check(self, schema: pa.Schema) -> None:
        for name in self.reads:
            if name not in schema.names:
                raise InvalidInput(f"--prompt: there is no column {{{name}}}. {did_you_mean(name, schema.names)}")
            if is_list(schema.field(name).type) or pa.types.is_struct(schema.field(name).type):
                raise InvalidInput(f"--prompt: column {{{name}}} holds {schema.field(name).type}, which is no text")

    def requests(self, table: pa.Table, protocol: str) -> list[GenerateRequest | None]:
        """The request of each row; None where a column of the prompt is null."""
        columns = {name: _texts(table.column(name)) for name in self.reads}
        found: list[GenerateRequest | None] = []
        for row in range(table.num_rows):
            values = {name: texts[row] for name, texts in columns.items()}
            missing = any(value is None for value in values.values())
            found.append(None if missing else self._request(values, protocol))
        return found

    def _request(self, values: dict[str, str | None], protocol: str) -> GenerateRequest:
        given = self.prompting
        text = "".join(piece + (values[name] or "" if name is not None else "") for piece, name in self._pieces)
        prompt: str | list[int] | Chat = text
        if given.chat:
            said = [{"role": "user", "content": text}]
            prompt = Chat([{"role": "system", "content": given.system}, *said] if given.system else said)
        return GenerateRequest(
            prompt,
            Sampling(temperature=given.temperature, seed=given.seed),
            Stops(max_tokens=given.max_tokens),
            Grammar("json_schema", given.schema) if given.schema else None,
            protocol=protocol,
        )

    def answer(self, text: str) -> dict[str, Any]:
        """The values of the columns that a text holds. Raises `InvalidInput` where it is not what was asked for."""
        if not self.prompting.schema:
            return {TEXT: text}
        try:
            found = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise InvalidInput(
                f"the answer is no whole JSON ({error}); allow more with --max-tokens, or bound the schema's strings"
            ) from None
        return {field.name: _fitting(found.get(field.name), field) for field in self._answers}


def _parse(template: str) -> list[tuple[str, str | None]]:
    """Texts and the columns after them."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise InvalidInput(f'--prompt "{template}": {error}; write {{column}}, and {{{{ for a brace') from None
    for _, name, form, conversion in parsed:
        if name == "" or form or conversion:
            raise InvalidInput(f'--prompt "{template}": write plain {{column}}, without a number or a format')
    return [(text, name) for text, name, _, _ in parsed]


def _columns(schema: str) -> pa.Schema:
    """A column for each property of a JSON schema."""
    try:
        document = msgspec.json.decode(schema, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InvalidInput(f"--schema is no JSON object: {error}") from None
    properties = document.get("properties")
    if document.get("type") != "object" or not isinstance(properties, dict) or not properties:
        raise InvalidInput('--schema: the answer has to be an object with "properties"; each becomes a column')
    return pa.schema([(name, _type(each)) for name, each in properties.items()])


def _type(schema: Any) -> pa.DataType:
    """The type of a property; whatever is no plain value nor a list of such is kept as JSON text."""
    kinds = schema.get("type") if isinstance(schema, dict) else None
    kinds = [kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if kind != "null"]
    if kinds == ["array"]:
        return pa.list_(_type(schema.get("items")))
    return _TYPES.get(kinds[0], pa.string()) if len(kinds) == 1 else pa.string()


def _fitting(value: Any, field: pa.Field) -> Any:
    """A value as its column takes it. Raises `InvalidInput` where that cannot be."""
    try:
        fitting = _value(value, field.type)
        pa.array([fitting], field.type)
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise InvalidInput(
            f'the answer\'s "{field.name}" does not fit its column ({field.type}): {error}; bound it in the schema'
        ) from None
    return fitting


def _value(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if type(value) is int and pa.types.is_floating(kind):
        return float(value)
    if is_list(kind):
        return [_value(item, kind.value_type) for item in value]
    if pa.types.is_string(kind) and not isinstance(value, str):
        return msgspec.json.encode(value).decode()
    return value


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    found: list[str | None] = plain(column.combine_chunks()).cast(pa.string()).to_pylist()
    return found
