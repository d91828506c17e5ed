"""The access log: one JSON line per finished request, written in batches. Knows observations and a text stream's
bytes; doesn't know requests or where the process log goes.
"""

import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from foretell.core.errors import ConfigError
from foretell.core.observation import Observation, TokenUse

_fields = attrgetter(
    "protocol",
    "model",
    "version",
    "request_id",
    "outcome",
    "rows",
    "error",
    "at",
    "total_s",
    "queue_s",
    "compute_s",
)


class AccessLine(msgspec.Struct, gc=False, omit_defaults=True):
    """One line. `ts` is when the request arrived, UTC, ISO 8601 with milliseconds. Tokens, the time to the first one
    and the mean time between pieces are there for generations.
    """

    ts: str
    protocol: str
    model: str
    version: str
    id: str
    outcome: str
    rows: int
    total_ms: float
    queue_ms: float
    compute_ms: float
    error: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_ms: float = 0.0
    inter_token_ms: float = 0.0


class AccessLog:
    """Writes a line for every observation (a `Consumer`; wrap it in `Detached`: a pipe can be full).

    A write that fails loses its batch, counts it in `dropped` and raises; the next batch is tried again. `kept`
    counts the lines written.
    """

    def __init__(self, stream: BinaryIO, close_stream: bool = False) -> None:
        self._stream = stream
        self._close_stream = close_stream
        self._encoder = msgspec.json.Encoder()
        self.kept = 0
        self.dropped = 0

    def consume(self, batch: Sequence[Observation]) -> None:
        try:
            self._stream.write(self._encoder.encode_lines(_lines(batch)))
            self._stream.flush()
        except (OSError, ValueError):
            self.dropped += len(batch)
            raise
        self.kept += len(batch)

    def tick(self) -> None:
        """Every batch is written at once; nothing waits."""

    def close(self) -> None:
        if self._close_stream:
            self._stream.close()


def open_access_log(target: str) -> AccessLog:
    """An access log that appends to the file `target`, or writes to standard error for "-".

    Raises `ConfigError` if the file cannot be opened.
    """
    if target == "-":
        return AccessLog(sys.stderr.buffer)
    try:
        stream = Path(target).open("ab")  # noqa: SIM115  # AccessLog closes it
    except OSError as error:
        raise ConfigError(
            f'access_log "{target}" cannot be opened for appending: {error.strerror}. Name a file in a writable'
            ' folder, or "-" for standard error'
        ) from error
    return AccessLog(stream, close_stream=True)


def _lines(batch: Sequence[Observation]) -> list[AccessLine]:
    protocol, model, version, ids, outcome, rows, error, at, *seconds = zip(*map(_fields, batch), strict=True)
    stamps = (np.array(at) * 1e3).astype("datetime64[ms]")
    ts = np.datetime_as_string(stamps, timezone="UTC").tolist()
    total, queue, compute = np.round(np.array(seconds) * 1e3, 3).tolist()
    lines = list(map(AccessLine, ts, protocol, model, version, ids, outcome, rows, total, queue, compute, error))
    for line, observation in zip(lines, batch, strict=True):
        if observation.tokens is not None:
            _add_tokens(line, observation.tokens)
    return lines


def _add_tokens(line: AccessLine, use: TokenUse) -> None:
    line.prompt_tokens, line.cached_tokens = use.prompt_tokens, use.cached_tokens
    line.completion_tokens = use.completion_tokens
    line.first_token_ms = round(use.first_token_s * 1e3, 3)
    line.inter_token_ms = round(use.mean_gap_s * 1e3, 3)
