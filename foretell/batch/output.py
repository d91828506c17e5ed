"""The output folder: tables become files of it, and the steps of the commit protocol are taken on a real disk."""

import errno
import os
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from foretell.batch.protocol import FileStep, Publish, SyncFolder, Write
from foretell.batch.spec import OutputFormat
from foretell.core.errors import ConfigError, Conflict
from foretell.tables.arrays import lists
from foretell.tables.values import is_bytes, is_list, lengths_of, plain

Contents = Mapping[str, tuple[pa.Table, OutputFormat]]
"""A part's files: name → what is in it."""


class OutputFolder:
    """A folder of this machine. `OSError` becomes a `ConfigError` that says what to do; nothing is lost by it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def prepare(self) -> None:
        """Make the folder if it is not there."""
        with _named(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    def check_free(self) -> None:
        """Raise `Conflict` if somebody's files are in it already."""
        if self.path.is_file():
            raise Conflict(f"{self.path} is a file; OUTPUT is a folder (choose the form with --format)")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise Conflict(
                f"{self.path} exists and is not empty. Give another folder, or --resume if a job of this store wrote it"
            )

    def names(self) -> list[str]:
        """Every file below it."""
        return [path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()]

    def remove(self, names: list[str]) -> None:
        for name in names:
            with _named(self.path):
                (self.path / name).unlink(missing_ok=True)

    def size(self, names: tuple[str, ...]) -> int:
        return sum((self.path / name).stat().st_size for name in names)

    def take(self, step: FileStep, contents: Contents) -> None:
        """Take one step of `protocol.commit_steps`."""
        with _named(self.path):
            match step:
                case Write(name, temporary):
                    place = self.path / temporary
                    place.parent.mkdir(parents=True, exist_ok=True)
                    write_table(*contents[name], place)
                    _sync(place)
                case Publish(name, temporary):
                    (self.path / temporary).rename(self.path / name)
                case SyncFolder(folder):
                    _sync(self.path / folder)

    def write_text(self, name: str, text: str) -> None:
        """Write a file that is there whole or not at all."""
        with _named(self.path):
            place = self.path / f".{name}.tmp"
            place.write_text(text)
            _sync(place)
            place.rename(self.path / name)


def write_table(table: pa.Table, form: OutputFormat, path: Path) -> None:
    """Write one file. Lists and records are real ones in Parquet and JSON lines, JSON text in CSV; bytes are real ones
    in Parquet, and Base64 in the others.
    """
    if form == "parquet":
        texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
        pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=texts, write_statistics=True)
    elif form == "csv":
        for at, field in enumerate(table.schema):
            if pa.types.is_nested(field.type):
                table = table.set_column(at, field.name, json_cells(table.column(at)))
            elif is_bytes(field.type):
                table = table.set_column(at, field.name, base64_cells(table.column(at)))
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_bytes(msgspec.json.Encoder().encode_lines(table.to_pylist()))


def json_cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists and records as JSON text. What is null stays null, an empty cell; NaN and infinity are null in JSON."""
    return pa.chunked_array([_json(chunk) for chunk in column.chunks], pa.string())


def base64_cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Bytes as text; null stays null."""
    values = column.to_pylist()
    return pa.chunked_array(
        [pa.array([None if value is None else b64encode(value).decode() for value in values], pa.string())]
    )


def _json(array: pa.Array) -> pa.Array:
    """Each value as JSON text; null stays null. Numbers, of which there are many, all at once."""
    array = plain(array)
    kind = array.type
    if is_list(kind):
        items = pc.coalesce(_json(array.flatten()), "null")
        counts = np.maximum(lengths_of(array), 0)
        rows = pc.binary_join_element_wise("[", pc.binary_join(lists(counts, items), ","), "]", "")
        return pc.if_else(array.is_valid(), rows, None)
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_finite(array), array.cast(pa.string()), None)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return array.cast(pa.string())
    encoder = msgspec.json.Encoder()
    values = array.to_pylist()
    return pa.array([None if value is None else encoder.encode(value).decode() for value in values], pa.string())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _named:  # noqa: N801  # reads as a function
    """What the file system refused, with the remedy."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "free some space" if full else "mend that"
            raise ConfigError(
                f"{self._folder} cannot be written: {error.strerror or error}. What was committed stays: {remedy},"
                " then resume the job"
            ) from error
