"""Answers and dead letters → JSON, one object a message."""

from collections.abc import Sequence
from typing import Any

import msgspec

from foretell.core.tensor import Tensors
from foretell.store.sample import encode_columns
from foretell.streams.message import QUOTED, Message, Record, Refusal

_encode = msgspec.json.Encoder().encode


class _Answer(msgspec.Struct, gc=False):
    key: str
    source: str
    position: str
    next: str
    model: str
    latency_ms: int
    outputs: dict[str, Any]


class _Letter(msgspec.Struct, gc=False, omit_defaults=True):
    key: str
    source: str
    position: str
    next: str
    reason: str
    value: str | bytes
    truncated: bool = False


def encode_answers(
    messages: Sequence[Message], outputs: Tensors, model: str, batchable: bool, now_ms: int
) -> list[Record]:
    """An object for each message: key, source, position, model, latency_ms and the outputs by name.

    BYTES outputs are text, or `{"b64": …}` where they are none.
    """
    names = list(outputs)
    columns = [encode_columns({n: a})[n] if a.dtype.kind == "O" else a.tolist() for n, a in outputs.items()]
    rows = zip(*columns, strict=True) if batchable else [tuple(columns)]
    return [
        Record(
            _encode(
                _Answer(
                    message.key.decode("utf-8", "replace"),
                    message.partition.origin,
                    message.position,
                    message.next,
                    model,
                    max(0, now_ms - message.time),
                    dict(zip(names, row, strict=True)),
                )
            ),
            message,
        )
        for message, row in zip(messages, rows, strict=True)
    ]


def encode_refusal(refusal: Refusal) -> Record:
    """A dead letter: where the message was, the reason, and the message (as base64 where it is no text)."""
    message = refusal.message
    raw = message.value[:QUOTED]
    try:
        value: str | bytes = raw.decode()
    except UnicodeDecodeError:
        value = raw
    key = message.key.decode("utf-8", "replace")
    cut = len(raw) < message.size
    letter = _Letter(key, message.partition.origin, message.position, message.next, refusal.reason, value, cut)
    return Record(_encode(letter), message)
