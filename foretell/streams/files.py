"""Files being appended to and folders of them, a message a line; and a file as sink, which knows what it holds."""

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import BinaryIO

import msgspec

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.ends import EndUrl
from foretell.streams.message import QUOTED, Message, Partition, Record, Refusal, ends
from foretell.streams.protocol import Resume, Room, is_replayed

WAIT_S = 0.05
CHUNK = 2**20


class _Held(msgspec.Struct):
    """What a line of a sink says of the message that it answers, and of the model that did."""

    source: str
    next: str
    model: str = ""


class FileSource:
    """Lines of a file, or of every file in a folder in the order of their names; with `follow` also those to come.

    Positions are byte offsets, kept for each `group` in a file beside it. A line counts once its end is there. A file
    that got shorter was replaced: it is read from its beginning, under another origin, for its offsets are others.
    """

    def __init__(self, path: Path, group: str, follow: bool) -> None:
        self._path = path
        self._memory = path.with_name(f".{path.name}.{group}.positions")
        self._follow = follow
        self._resume = Resume()
        self._committed: dict[str, str] = {}
        self._files: dict[str, _Reading] = {}
        self._lag = 0

    async def open(self, resume: Resume) -> None:
        """Where the group's last commit or what the sink holds ends, whichever is further; or where state is."""
        if not self._path.exists():
            raise ConfigError(f'"{self._path}" is not there; name a file or a folder that is')
        self._resume = resume
        self._files.clear()
        with contextlib.suppress(FileNotFoundError):
            try:
                self._committed = msgspec.json.decode(self._memory.read_bytes(), type=dict[str, str])
            except msgspec.MsgspecError as error:
                raise ConfigError(f'"{self._memory}" is damaged ({error}); remove it to read from the start') from None
        try:
            _replace(self._memory, msgspec.json.encode(self._committed))
        except StreamError as error:
            raise ConfigError(f"positions cannot be kept: {error.message}") from None

    async def poll(self, room: Room) -> list[Message] | None:
        """Complete lines; the last line of a file that is not followed may lack its end."""
        messages = await asyncio.to_thread(self._read, room)
        if not messages and not self._follow:
            return None
        if not messages:
            await asyncio.sleep(WAIT_S)
        return messages

    async def commit(self, messages: Sequence[Message]) -> None:
        """Written beside the source, whole or not at all."""
        done = ends(message for message in messages if not message.replayed)
        if done:
            self._committed |= {partition.origin: message.next for partition, message in done.items()}
            await asyncio.to_thread(_replace, self._memory, msgspec.json.encode(self._committed))

    def lag(self) -> int:
        """Bytes that are there and were not polled."""
        return self._lag

    async def close(self) -> None:
        """Nothing is held open between polls."""

    def _read(self, room: Room) -> list[Message]:
        folder = self._path.is_dir()
        files = sorted(p for p in self._path.iterdir() if p.is_file() and p.name[0] != ".") if folder else [self._path]
        messages: list[Message] = []
        self._lag = 0
        for path in files:
            reading = self._reading(str(path.absolute()))
            with contextlib.suppress(FileNotFoundError):  # taken away since it was listed
                size = path.stat().st_size
                if size < reading.at:
                    reading = self._replaced(reading)
                if room and size > reading.at:
                    found = self._lines(path, reading, room)
                    messages += found
                    room = room.beside(found)
                self._lag += size - reading.at
        return messages

    def _reading(self, name: str) -> "_Reading":
        reading = self._files.get(name)
        if reading is None:
            known, state = (self._committed, self._resume.answered), self._resume.state
            generation = next(n for n in count(1) if not any(_origin(name, n + 1) in each for each in known))
            origin = _origin(name, generation)
            done = self._resume.done(origin, self._committed.get(origin))
            start = done if state is None else state.get(name)
            reading = self._files[name] = _Reading(Partition(name, origin), generation, int(start or 0), done)
        return reading

    def _replaced(self, old: "_Reading") -> "_Reading":
        name, generation = old.partition.name, old.generation + 1
        reading = _Reading(Partition(name, _origin(name, generation)), generation, 0, None)
        self._files[name] = reading
        return reading

    def _lines(self, path: Path, reading: "_Reading", room: Room) -> list[Message]:
        at = reading.at
        with path.open("rb") as file:
            file.seek(at)
            data = file.read(CHUNK)
            if len(data) == CHUNK and b"\n" not in data:
                return self._long_line(file, reading, room.largest)
            ended = not self._follow and not file.read(1)
        now = int(time.time() * 1000)
        messages: list[Message] = []
        for line in _split(data):
            if len(messages) == room.messages or at - reading.at >= room.nbytes or not (line.endswith(b"\n") or ended):
                break
            end = at + len(line)
            if line.strip():
                messages.append(reading.message(line, at, end, now))
            at = end
        reading.at = at
        return messages

    def _long_line(self, file: BinaryIO, reading: "_Reading", largest: int) -> list[Message]:
        """A line of more than a chunk, read once its end is known; of one that nobody takes the beginning."""
        at, reading.looked = reading.at, max(reading.looked, reading.at + CHUNK)
        file.seek(reading.looked)
        end = 0
        while not end and (more := file.read(CHUNK)):
            found = more.find(b"\n") + 1
            end = reading.looked + found if found else 0
            reading.looked += found or len(more)
        if not end and self._follow:
            return []
        reading.at = reading.looked
        file.seek(at)
        length = reading.at - at
        line = file.read(length if length <= largest + 2 else QUOTED)
        return [reading.message(line, at, reading.at, int(time.time() * 1000), length - len(line))]


class _Reading(msgspec.Struct):
    """How far one file has come, the `generation`th of its name; up to `done` it was answered before, and up to
    `looked` there is no end of the line that begins at `at`.
    """

    partition: Partition
    generation: int
    at: int
    done: str | None
    looked: int = 0

    def message(self, line: bytes, at: int, end: int, now_ms: int, cut: int = 0) -> Message:
        """The message of a line that begins at `at`."""
        position = str(at)
        replayed = is_replayed(position, self.done)
        return Message(line.rstrip(b"\r\n"), b"", self.partition, position, str(end), now_ms, replayed, cut)


class FileSink:
    """A line for each answer, synced before the position is committed. Effectively once: at start a torn last line
    is cut off, and the source goes on behind the last answer that the file holds of each of its partitions.
    """

    remembers = True

    def __init__(self, path: Path, owner: str = "") -> None:
        self._path = path
        self._owner = owner
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
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

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
                    if said.model.partition("@")[0] == self._owner or not self._owner:
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
    return FileSink(Path(url.host + url.path), url.owner)


def _origin(name: str, generation: int) -> str:
    """No other file's: none can lie in a file.

    >>> _origin("/var/log/events", 1), _origin("/var/log/events", 2)
    ('/var/log/events', '/var/log/events/2')
    """
    return name if generation == 1 else f"{name}/{generation}"


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
