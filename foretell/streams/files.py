"""Files being appended to and folders of them, a message a line; and a file as sink, which knows what it holds."""

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.ends import EndUrl
from foretell.streams.message import Message, Record, Refusal

WAIT_S = 0.05
CHUNK = 2**20
MOST_LINE = 16 * 2**20


class _Held(msgspec.Struct):
    """What a line of a sink says of the message that it answers."""

    source: str
    next: str


class FileSource:
    """Lines of a file, or of every file in a folder in the order of their names; with `follow` also those to come.

    Positions are byte offsets, kept for each `group` in a file beside it. A line counts once its end is there. A file
    that got shorter was replaced, and is read from its beginning.
    """

    def __init__(self, path: Path, group: str, follow: bool) -> None:
        self._path = path
        self._memory = path.with_name(f".{path.name}.{group}.positions")
        self._follow = follow
        self._at: dict[str, int] = {}
        self._committed: dict[str, str] = {}
        self._lag = 0

    async def open(self, held: Mapping[str, str]) -> None:
        """Where the group's last commit or what the sink holds ends, whichever is further."""
        if not self._path.exists():
            raise ConfigError(f'"{self._path}" is not there; name a file or a folder that is')
        with contextlib.suppress(FileNotFoundError):
            try:
                self._committed = msgspec.json.decode(self._memory.read_bytes(), type=dict[str, str])
            except msgspec.MsgspecError as error:
                raise ConfigError(f'"{self._memory}" is damaged ({error}); remove it to read from the start') from None
        self._at = {name: int(position) for name, position in self._committed.items()}
        for name, position in held.items():
            self._at[name] = max(int(position), self._at.get(name, 0))

    async def poll(self, most: int) -> list[Message] | None:
        """Complete lines; the last line of a file that is not followed may lack its end."""
        messages = await asyncio.to_thread(self._read, most)
        if not messages and not self._follow:
            return None
        if not messages:
            await asyncio.sleep(WAIT_S)
        return messages

    async def commit(self, positions: Mapping[str, str]) -> None:
        """Written beside the source, whole or not at all."""
        self._committed = {**self._committed, **positions}
        await asyncio.to_thread(_replace, self._memory, msgspec.json.encode(self._committed))

    def lag(self) -> int:
        """Bytes that are there and were not polled."""
        return self._lag

    async def close(self) -> None:
        """Nothing is held open between polls."""

    def _read(self, most: int) -> list[Message]:
        folder = self._path.is_dir()
        files = sorted(p for p in self._path.iterdir() if p.is_file() and p.name[0] != ".") if folder else [self._path]
        messages: list[Message] = []
        self._lag = 0
        for path in files:
            name = str(path.absolute())
            size = path.stat().st_size
            if size < self._at.get(name, 0):
                self._at[name] = 0
            if len(messages) < most and size > self._at.get(name, 0):
                messages += self._lines(path, name, most - len(messages))
            self._lag += size - self._at.get(name, 0)
        return messages

    def _lines(self, path: Path, name: str, most: int) -> list[Message]:
        at = self._at.get(name, 0)
        with path.open("rb") as file:
            file.seek(at)
            data = file.read(CHUNK)
            while b"\n" not in data and len(data) < MOST_LINE and (more := file.read(CHUNK)):
                data += more
            ended = not self._follow and not file.read(1)
        now = int(time.time() * 1000)
        messages = []
        for line in _split(data):
            if not line.endswith(b"\n") and not ended and len(line) < MOST_LINE:
                break
            if len(messages) == most:
                break
            if line.strip():
                messages.append(Message(line.rstrip(b"\r\n"), b"", name, str(at), str(at + len(line)), now))
            at += len(line)
        self._at[name] = at
        return messages


class FileSink:
    """A line for each answer, synced before the position is committed. Effectively once: at start a torn last line
    is cut off, and the source goes on behind the last answer that the file holds of each of its partitions.
    """

    remembers = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    async def open(self) -> Mapping[str, str]:
        """The positions of the answers that it holds."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ConfigError(f'"{self._path}" cannot be written: {error}') from None
        return await asyncio.to_thread(self._recover)

    async def publish(self, records: Sequence[Record]) -> list[Refusal]:
        """All lines, or none of them where the disk is full."""
        if records:
            await asyncio.to_thread(self._append, b"".join(record.value + b"\n" for record in records))
        return []

    async def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def _append(self, data: bytes) -> None:
        before = os.fstat(self._file).st_size
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
            os.fdatasync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise StreamError(f'"{self._path}" cannot be written: {error}') from None

    def _recover(self) -> dict[str, str]:
        held: dict[str, str] = {}
        decoder = msgspec.json.Decoder(_Held)
        end = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                with contextlib.suppress(msgspec.MsgspecError):
                    said = decoder.decode(line)
                    held[said.source] = said.next
        os.ftruncate(self._file, end)
        return held


def make_source(url: EndUrl) -> FileSource:
    """`PATH` and `file:///PATH?group=foretell&follow=yes`."""
    url.allow("group", "follow")
    group = url.options.get("group", "foretell")
    return FileSource(Path(url.host + url.path), group, url.flag("follow", url.text.startswith("file:")))


def make_sink(url: EndUrl) -> FileSink:
    """`PATH` and `file:///PATH`."""
    url.allow()
    return FileSink(Path(url.host + url.path))


def _split(data: bytes) -> list[bytes]:
    """Lines by \\n alone; `bytes.splitlines` also cuts at a lone \\r."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise StreamError(f'"{path}" cannot be written: {error}') from None
