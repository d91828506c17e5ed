"""Files of packages on any fsspec filesystem. Knows folders and bytes; what they mean is the store's business."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from foretell.core.errors import ConfigError


class Blobs:
    """Folders below one root URL. Paths are relative and POSIX; `OSError` from the filesystem passes through."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._local = isinstance(filesystem, LocalFileSystem)

    @classmethod
    def open(cls, url: str) -> "Blobs":
        """Open a folder (made if absent) or any URL that fsspec knows. `ConfigError` if its driver is missing."""
        try:
            filesystem, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f'cannot open the store "{url}": {error}') from None
        try:
            filesystem.makedirs(root, exist_ok=True)
        except OSError as error:
            raise ConfigError(f'cannot open the store "{url}": {error}') from None
        return cls(filesystem, root)

    @property
    def local_root(self) -> Path | None:
        """The root as a folder of this machine, or None when files have to be downloaded."""
        return Path(self._root) if self._local else None

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def upload(self, folder: Path, names: Iterable[str], target: str) -> None:
        """Copy the files `names` of a local folder below `target`; on local disks they are synced to it."""
        for name in names:
            place = self._at(f"{target}/{name}")
            self._fs.makedirs(place.rsplit("/", 1)[0], exist_ok=True)
            self._fs.put_file(str(folder / name), place)
            self._sync(place)

    def write(self, path: str, content: bytes) -> None:
        """Create one file."""
        place = self._at(path)
        self._fs.makedirs(place.rsplit("/", 1)[0], exist_ok=True)
        self._fs.pipe_file(place, content)
        self._sync(place)

    def _sync(self, place: str) -> None:
        # The database row must not outlive the files in a power cut.
        if self._local:
            descriptor = os.open(place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def move(self, source: str, target: str) -> None:
        """Rename a folder; `target` must not exist. Atomic on local disks, copy and delete elsewhere."""
        start, end = self._at(source), self._at(target)
        self._fs.makedirs(end.rsplit("/", 1)[0], exist_ok=True)
        if self._local:
            os.rename(start, end)
            return
        start = self._fs._strip_protocol(start)
        for place in self._fs.find(start):
            copy = end + place[len(start) :]
            self._fs.makedirs(copy.rsplit("/", 1)[0], exist_ok=True)
            self._fs.cp_file(place, copy)
        self._fs.rm(start, recursive=True)

    def remove(self, path: str) -> None:
        """Delete a folder and all in it; nothing happens if there is none."""
        if self._local:
            shutil.rmtree(self._at(path), ignore_errors=True)
        elif self._fs.exists(self._at(path)):
            self._fs.rm(self._at(path), recursive=True)

    def names(self, path: str) -> list[str]:
        """What a folder holds, sorted; nothing if it does not exist."""
        self._fs.invalidate_cache()
        if not self._fs.isdir(self._at(path)):
            return []
        return sorted(str(e).rstrip("/").rsplit("/", 1)[-1] for e in self._fs.ls(self._at(path), detail=False))

    def download(self, path: str, folder: Path) -> None:
        """Copy all files below `path` into a local folder."""
        start = self._fs._strip_protocol(self._at(path))
        self._fs.invalidate_cache()
        for place in self._fs.find(start):
            target = folder / place[len(start) :].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(place, str(target))
