"""JSON objects → tensors, and answers → JSON. Each message is decoded alone, so that none can spill into the next."""

from collections.abc import Sequence
from typing import Any

import msgspec

from foretell.core.column_map import ColumnMap
from foretell.core.columns import to_tensor
from foretell.core.tensor import Signature, Tensors, TensorSpec
from foretell.streams.message import Message, Refusal


class JsonFormat:
    """`columns`: which fields feed which inputs. `key`: the field that is the message's key, if the source has none."""

    def __init__(self, signature: Signature, columns: ColumnMap, key: str = "") -> None:
        known = (*columns.columns, *(spec.name for spec in signature.inputs if spec.name not in columns.feeds))
        self._signature = signature
        self._columns = columns.complete(signature, known)
        self._key = key
        names = tuple(dict.fromkeys((*self._columns.columns, *((key,) if key else ()))))
        self._place = {name: f"f{number}" for number, name in enumerate(names)}
        # Fields may have any name, attributes of a struct may not.
        fields = [(place, Any) for place in self._place.values()]
        self._decoder = msgspec.json.Decoder(
            msgspec.defstruct("Row", fields, rename={place: name for name, place in self._place.items()})
        )

    def decode(self, messages: Sequence[Message]) -> tuple[list[Message], list[Any], list[Refusal]]:
        """The messages that are JSON with all fields, their rows, and the others."""
        decode = self._decoder.decode
        try:
            return self._keyed(messages, [decode(message.value) for message in messages], [])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
        good: list[Message] = []
        rows: list[Any] = []
        refused = []
        for message in messages:
            try:
                rows.append(decode(message.value))
                good.append(message)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                refused.append(Refusal(message, f"not the JSON that this stream expects: {error}"))
        return self._keyed(good, rows, refused)

    def tensors(self, rows: Sequence[Any]) -> Tensors:
        """One request of all rows (one, where the model takes one). Raises `InvalidInput` if any does not fit."""
        made = {spec.name: self._tensor(rows, spec) for spec in self._signature.inputs}
        self._signature.check(made)
        return made

    def _tensor(self, rows: Sequence[Any], spec: TensorSpec) -> Any:
        places = [self._place[column] for column in self._columns.feeds[spec.name]]
        if len(places) == 1:
            values = [getattr(row, places[0]) for row in rows]
        else:
            values = [[getattr(row, place) for place in places] for row in rows]
        return to_tensor(values if self._signature.batchable else values[0], spec)

    def _keyed(
        self, messages: Sequence[Message], rows: list[Any], refused: list[Refusal]
    ) -> tuple[list[Message], list[Any], list[Refusal]]:
        if not self._key:
            return list(messages), rows, refused
        place = self._place[self._key]
        return [_with_key(*pair, place) for pair in zip(messages, rows, strict=True)], rows, refused


def _with_key(message: Message, row: Any, place: str) -> Message:
    value = getattr(row, place)
    key = value.encode() if isinstance(value, str) else msgspec.json.encode(value)
    return msgspec.structs.replace(message, key=key)


_ENCODER = msgspec.json.Encoder()


def encode_answers(
    messages: Sequence[Message], outputs: Tensors, model: str, batchable: bool, now_ms: int
) -> list[bytes]:
    """An object for each message: key, source, position, model, latency_ms and the outputs by name."""
    names = list(outputs)
    columns = [_plain(outputs[name].tolist()) if batchable else [_plain(outputs[name].tolist())] for name in names]
    return [
        _ENCODER.encode(
            {
                "key": message.key.decode("utf-8", "replace"),
                "source": message.partition,
                "position": message.position,
                "next": message.next,
                "model": model,
                "latency_ms": max(0, now_ms - message.time),
                "outputs": dict(zip(names, row, strict=True)),
            }
        )
        for message, row in zip(messages, zip(*columns, strict=True), strict=True)
    ]


def encode_refusal(refusal: Refusal) -> bytes:
    """A dead letter: where the message was, the reason, and the message (as base64 where it is no text)."""
    message = refusal.message
    try:
        value: str | bytes = message.value.decode()
    except UnicodeDecodeError:
        value = message.value
    return _ENCODER.encode(
        {
            "key": message.key.decode("utf-8", "replace"),
            "source": message.partition,
            "position": message.position,
            "next": message.next,
            "reason": refusal.reason,
            "value": value,
        }
    )


def _plain(values: Any) -> Any:
    """Bytes of BYTES outputs as text."""
    if isinstance(values, list):
        return [_plain(value) for value in values] if values and isinstance(values[0], list | bytes) else values
    return values.decode("utf-8", "replace") if isinstance(values, bytes) else values
