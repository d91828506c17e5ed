"""Files of clients: what they upload and what is made for them. A row in the database makes one exist; its contents lie
in a folder of this machine.
"""

import contextlib
import os
import uuid
from pathlib import Path

import msgspec
import sqlalchemy as sa

from foretell.core.errors import ConfigError, NotFound, NotReady
from foretell.store.database import Database
from foretell.store.schema import FILES

_LOCK = "files"


class FileInfo(msgspec.Struct, frozen=True):
    """`created` is in Unix seconds. `size` in bytes."""

    id: str
    filename: str
    purpose: str
    size: int
    created: float


class Files:
    """Methods block; threads may share one. Without a folder there are no files, and none can be added."""

    def __init__(self, database: Database, folder: Path | None) -> None:
        self.folder = folder
        self._database = database

    def add(self, filename: str, purpose: str, content: bytes, now: float) -> FileInfo:
        """Keep `content`. Raises `NotReady` where the disk does not take it; then there is no such file."""
        temporary = self._folder() / f".{uuid.uuid4().hex}.tmp"
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            return self.adopt(f"file-{uuid.uuid4().hex}", filename, purpose, temporary, now)
        except OSError as error:
            raise NotReady(
                f"{filename} was not kept: {error.strerror or error} ({temporary.parent}). Free some space, or give"
                " another folder as [store] files"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def adopt(self, name: str, filename: str, purpose: str, path: Path, now: float) -> FileInfo:
        """Make `path` the file with the id `name`, once however often it is tried."""
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        info = FileInfo(name, filename, purpose, path.stat().st_size, now)
        place = self._folder() / name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
        with self._database.write(_LOCK, counts=False) as connection:
            connection.execute(FILES.delete().where(FILES.c.id == name))
            connection.execute(FILES.insert().values(msgspec.structs.asdict(info)))
        return info

    def get(self, name: str) -> FileInfo:
        """One file. Raises `NotFound`."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(FILES).where(FILES.c.id == name)).first()
        if row is None:
            raise NotFound(f'no file "{name}": it was never uploaded here, or it was deleted')
        return FileInfo(**row._mapping)

    def all(self) -> list[FileInfo]:
        """Every file, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(FILES).order_by(FILES.c.created.desc(), FILES.c.id))
            return [FileInfo(**row._mapping) for row in rows]

    def path(self, name: str) -> Path:
        """Where the contents of a file lie. Raises `NotFound`, also where they are on another machine."""
        place = self._folder() / self.get(name).id
        if not place.is_file():
            raise NotFound(f'the contents of file "{name}" are not on this machine ({place}); upload it again')
        return place

    def remove(self, name: str) -> None:
        """Forget a file and its contents. Raises `NotFound`."""
        info = self.get(name)
        with self._database.write(_LOCK, counts=False) as connection:
            connection.execute(FILES.delete().where(FILES.c.id == info.id))
        (self._folder() / info.id).unlink(missing_ok=True)

    def _folder(self) -> Path:
        if self.folder is None:
            raise ConfigError(
                "a remote store keeps no files of clients; name a folder of this machine as [store] files"
            )
        return self.folder
