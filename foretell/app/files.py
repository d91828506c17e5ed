"""The store's files as the server's /v1/files asks for them: blocking calls in threads, values in OpenAI's shape."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

from foretell.server.openai_files import FileObject
from foretell.store.files import FileInfo, Files

_CHUNK = 256 * 2**10


class StoredFiles:
    """Implements `server.openai_files.FileStore`."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def add(self, filename: str, purpose: str, content: bytes) -> FileObject:
        return shown(await asyncio.to_thread(self._files.add, filename, purpose, content, time.time()))

    async def all(self) -> list[FileObject]:
        return [shown(info) for info in await asyncio.to_thread(self._files.all)]

    async def get(self, name: str) -> FileObject:
        return shown(await asyncio.to_thread(self._files.get, name))

    async def content(self, name: str) -> AsyncIterator[bytes]:
        return _chunks(await asyncio.to_thread(self._files.path, name))

    async def remove(self, name: str) -> None:
        await asyncio.to_thread(self._files.remove, name)


def shown(info: FileInfo) -> FileObject:
    return FileObject(info.id, info.size, int(info.created), info.filename, info.purpose)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
