"""Messages → rows → columns, whatever the format; messages that are none are refused alone. A format is one file with a
class of the shape of `Format`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from foretell.core.column_map import ColumnMap
from foretell.core.columns import to_tensor
from foretell.core.errors import InvalidInput
from foretell.core.tensor import Signature, Tensor, Tensors, TensorSpec
from foretell.streams.message import Message, Refusal


class Format(Protocol):
    """How the bytes of a message become a row, and rows become columns."""

    @property
    def fields(self) -> Sequence[str]:
        """The fields that are known to be there; empty where any may be."""

    def decode(self, value: bytes) -> Any:
        """Raises `InvalidInput` that says what is wrong."""

    def column(self, rows: Sequence[Any], name: str) -> list[Any]:
        """One field of all rows. Raises `InvalidInput` if any has none."""

    def event(self, row: Any) -> Mapping[str, Any]:
        """A row by field, as a transform sees it."""


class Decoded(NamedTuple):
    """Messages that are rows, those rows, and the others."""

    messages: list[Message]
    rows: list[Any]
    refused: list[Refusal]


def decode(messages: Sequence[Message], form: Format, key: str, most_bytes: int) -> Decoded:
    """Rows of a micro-batch. `key`: the field that is the key of each message, "" for the source's own.

    A message of more than `most_bytes` is refused before anything reads it.
    """
    convert = form.decode
    try:
        if max((message.size for message in messages), default=0) <= most_bytes:
            found = Decoded(list(messages), [convert(message.value) for message in messages], [])
            return _keyed(found, form, key) if key else found
    except InvalidInput:
        pass
    found = Decoded([], [], [])
    for message in messages:
        try:
            if message.size > most_bytes:
                raise InvalidInput(f"the message has {message.size:,} bytes, the limit is {most_bytes:,}")
            one = Decoded([message], [convert(message.value)], [])
            if key:
                one = _keyed(one, form, key)
            found.messages.extend(one.messages)
            found.rows.extend(one.rows)
        except InvalidInput as error:
            found.refused.append(Refusal(message, error.message))
    return found


def _keyed(found: Decoded, form: Format, key: str) -> Decoded:
    values = form.column(found.rows, key)
    keys = [value.encode() if isinstance(value, str) else msgspec.json.encode(value) for value in values]
    pairs = zip(found.messages, keys, strict=True)
    return found._replace(messages=[msgspec.structs.replace(message, key=key) for message, key in pairs])


def fields_of(signature: Signature, columns: ColumnMap) -> list[str]:
    """The fields that feed a model: those of the map, and those named like inputs that it does not feed."""
    return [*columns.columns, *(spec.name for spec in signature.inputs if spec.name not in columns.feeds)]


class Columns:
    """Rows → the inputs of a model, by its signature and a map of fields to inputs. Raises `InvalidInput` at once where
    a format that knows its fields lacks one. Inputs of `without` come from elsewhere.
    """

    def __init__(self, form: Format, signature: Signature, columns: ColumnMap, without: Collection[str] = ()) -> None:
        wanted = Signature(tuple(spec for spec in signature.inputs if spec.name not in without), signature.outputs)
        known = form.fields or fields_of(wanted, columns)
        self._feeds = columns.complete(wanted, list(known)).feeds
        self._form = form
        self._inputs = wanted.inputs
        self._batchable = signature.batchable

    def tensors(self, rows: Sequence[Any]) -> Tensors:
        """One request of all rows (of one, where the model takes whole requests). Raises `InvalidInput` if any does not
        fit; then ask for fewer.
        """
        return {spec.name: self._tensor(rows, spec) for spec in self._inputs}

    def _tensor(self, rows: Sequence[Any], spec: TensorSpec) -> Tensor:
        columns = [self._form.column(rows, name) for name in self._feeds[spec.name]]
        values: list[Any] = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        return to_tensor(values if self._batchable else values[0], spec)
