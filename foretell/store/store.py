"""The store: immutable versions by name, and the aliases that point at them. Safe between processes.

Files live at `packages/<name>/<number>/`; the row in the database is what makes a version exist.
"""

import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import msgspec
import platformdirs
import sqlalchemy as sa

from foretell.core.errors import ConfigError, Conflict, NotFound, NotReady, PackageError, did_you_mean
from foretell.core.reference import Reference, check_name
from foretell.store.alias import check_alias, move_alias, read_aliases, read_history
from foretell.store.blobs import Blobs
from foretell.store.database import Database
from foretell.store.files import Files
from foretell.store.jobs import Jobs
from foretell.store.manifest import Identity, encode_manifest
from foretell.store.package import MANIFEST, SEAL, Package, Seal, encode_seal, file_hashes, package_files
from foretell.store.schema import MODELS, VERSIONS
from foretell.store.version import ANY, AliasChange, Expected, VersionInfo

PACKAGES = "packages"
DEFAULT_ALIAS = "live"
_STAGING = ".staging-"
_STALE_S = 24 * 3600.0


def default_home() -> Path:
    """Where the store lives when nobody says otherwise: the user's data folder."""
    return Path(platformdirs.user_data_dir("foretell", appauthor=False))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _info(row: Any) -> VersionInfo:
    return VersionInfo(row.name, row.number, row.digest, row.created, row.runtime)


class Store:
    """Packages in a blob store, versions and aliases in a database. Methods block; threads may share one."""

    def __init__(self, blobs: Blobs, database: Database, cache: Path, files: Path | None = None) -> None:
        self._blobs = blobs
        self._database = database
        self._cache = cache
        self._verified: dict[tuple[str, int], Package] = {}
        self.jobs = Jobs(database)
        self.files = Files(database, files)

    @classmethod
    def open(
        cls,
        url: str | Path | None = None,
        database_url: str | None = None,
        cache: Path | None = None,
        files: Path | None = None,
    ) -> "Store":
        """Open a store: a folder or any fsspec URL (default: `default_home()`), made if it does not exist.

        `database_url` is by default SQLite in the store's folder; a remote store needs one. `cache` is where
        remote packages are downloaded to, `files` where clients' files are kept (default: in the store's folder; a
        remote store keeps none without it). Raises `ConfigError` that says which of them is no good.
        """
        blobs = Blobs.open(str(url if url is not None else default_home()))
        if database_url is None:
            if blobs.local_root is None:
                raise ConfigError(
                    f'the store "{url}" is remote; give it a database as well, postgresql://host/name or sqlite:///path'
                )
            database_url = f"sqlite:///{blobs.local_root / 'foretell.db'}"
        cache = cache or Path(platformdirs.user_cache_dir("foretell", appauthor=False), "packages")
        if files is None and blobs.local_root is not None:
            files = blobs.local_root / "files"
        return cls(blobs, Database.open(database_url), cache, files)

    def close(self) -> None:
        """Give back the database connections."""
        self._database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- versions ---------------------------------------------------------------------------------------------

    def add(self, name: str, folder: Path) -> VersionInfo:
        """Register the package in `folder` as the next version of `name`, and return it.

        Nothing is registered if the contents equal the newest version (`unchanged` is true then), or if
        anything fails on the way. Raises `PackageError` for a bad package or a full disk.
        """
        check_name(name)
        package = Package.open(folder)
        newest = self._newest(name)
        if newest and newest.digest == package.digest:
            return msgspec.structs.replace(newest, unchanged=True)
        self._sweep()
        staging = f"{PACKAGES}/{_STAGING}{int(time.time())}-{uuid.uuid4().hex}"
        try:
            with _full_disk_named(name):
                self._stage(name, package, staging)
                return self._commit(name, package, staging)
        finally:
            # After a commit the staging folder has moved and there is nothing to remove.
            self._blobs.remove(staging)

    def _stage(self, name: str, package: Package, staging: str) -> None:
        identity = Identity(name=name, created=_now(), foretell=installed_version("foretell"))
        manifest = msgspec.structs.replace(package.manifest, package=identity)
        hashes = file_hashes(package.path, package.manifest)
        others = [file for file in package_files(package.path) if file != MANIFEST]
        self._blobs.upload(package.path, others, staging)
        self._blobs.write(f"{staging}/{MANIFEST}", encode_manifest(manifest).encode())
        self._blobs.write(f"{staging}/{SEAL}", encode_seal(Seal(package.digest, hashes)))

    def _commit(self, name: str, package: Package, staging: str) -> VersionInfo:
        with self._database.write(name) as connection:
            newest = _newest_of(connection, name)
            if newest and newest.digest == package.digest:
                return msgspec.structs.replace(newest, unchanged=True)
            self._sweep_unknown(connection, name)
            number = _next_number(connection, name)
            info = VersionInfo(name, number, package.digest, _now(), package.manifest.runtime)
            self._blobs.move(staging, _place(info))
            row = msgspec.structs.asdict(info)
            del row["unchanged"]
            try:
                connection.execute(VERSIONS.insert().values(row))
            except Exception:
                self._blobs.remove(_place(info))
                raise
        return info

    def _sweep(self) -> None:
        """Remove what adds that died long ago left in staging."""
        for entry in self._blobs.names(PACKAGES):
            started = entry.removeprefix(_STAGING).split("-")[0]
            if entry.startswith(_STAGING) and started.isdigit() and int(started) < time.time() - _STALE_S:
                self._blobs.remove(f"{PACKAGES}/{entry}")

    def _sweep_unknown(self, connection: sa.Connection, name: str) -> None:
        """Remove folders that no row knows: adds that died before their commit, removals that died after it.

        The caller holds the model's lock, so none of them can be somebody's add in progress.
        """
        known = {str(info.number) for info in _versions_of(connection, name)}
        for entry in self._blobs.names(f"{PACKAGES}/{name}"):
            if entry not in known:
                self._blobs.remove(f"{PACKAGES}/{name}/{entry}")

    def names(self) -> list[str]:
        """Every name that has a version."""
        with self._database.read() as connection:
            return list(connection.execute(sa.select(VERSIONS.c.name).distinct().order_by(VERSIONS.c.name)).scalars())

    def versions(self, name: str) -> list[VersionInfo]:
        """The versions of `name`, oldest first. Raises `NotFound` if there are none."""
        with self._database.read() as connection:
            found = _versions_of(connection, name)
        return found or self._unknown(name)

    def resolve(self, reference: Reference) -> VersionInfo:
        """The version that a reference means now: its number, its alias, else `live`, else the newest.

        Raises `NotFound` that lists what there is.
        """
        with self._database.read() as connection:
            versions = {info.number: info for info in _versions_of(connection, reference.name)}
            aliases = read_aliases(connection, reference.name)
        if not versions:
            self._unknown(reference.name)
        number = reference.version
        if number is None:
            number = aliases.get(reference.selector or DEFAULT_ALIAS)
        if number is None and not reference.selector:
            number = max(versions)
        if number not in versions:
            known = [str(n) for n in versions] + list(aliases)
            raise NotFound(f'"{reference}" does not exist. {did_you_mean(reference.selector, known)}')
        return versions[number]

    def remove(self, reference: Reference, force: bool = False) -> VersionInfo:
        """Remove the one version that `reference` means; its number is never given again.

        Raises `Conflict` if an alias points at it, unless `force`, which drops those aliases too.
        """
        info = self.resolve(reference)
        with self._database.write(info.name) as connection:
            holders = [alias for alias, number in read_aliases(connection, info.name).items() if number == info.number]
            if holders and not force:
                raise Conflict(
                    f"{info} is what {', '.join(f'{info.name}@{a}' for a in holders)} means; move the alias first,"
                    " or force the removal to drop it as well"
                )
            for alias in holders:
                move_alias(connection, info.name, alias, None, ANY, _now())
            connection.execute(VERSIONS.delete().where(_is(info.name, info.number)))
        self._verified.pop((info.name, info.number), None)
        self._blobs.remove(_place(info))
        return info

    def fetch(self, info: VersionInfo) -> Package:
        """The version's package on this machine, downloaded if need be; its digest is checked once a process.

        Raises `PackageError` that names the file that differs, `NotFound` if the files are gone.
        """
        key = (info.name, info.number)
        if key not in self._verified:
            root = self._blobs.local_root
            folder = root / _place(info) if root else self._download(info)
            if not (folder / MANIFEST).is_file():
                raise NotFound(f"the files of {info} are gone from the store; add the model again")
            package = Package.open(folder)
            if package.digest != info.digest:
                raise PackageError(
                    f"{folder} is not {info}: its digest is {package.digest[:16]}…, registered was"
                    f" {info.digest[:16]}…. Restore it from a copy, or remove the version"
                )
            self._verified[key] = package
        return self._verified[key]

    def _download(self, info: VersionInfo) -> Path:
        target = self._cache / info.digest
        if target.is_dir():
            return target
        self._cache.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self._cache))
        try:
            self._blobs.download(_place(info), staging)
            if not (staging / MANIFEST).is_file():
                return target
            Package.open(staging)
            try:
                staging.rename(target)
            except OSError:
                # Another process finished the same download first.
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return target

    # --- aliases ----------------------------------------------------------------------------------------------

    def set_alias(self, name: str, alias: str, version: int, expected: int | Expected | None = ANY) -> AliasChange:
        """Point `alias` at a version if it says `expected` now (None: if it does not exist yet).

        Raises `Conflict` if it says something else, `NotFound` if the version does not exist.
        """
        check_alias(alias)
        with self._database.write(name) as connection:
            if version not in [info.number for info in _versions_of(connection, name)]:
                raise NotFound(f'"{name}" has no version {version}; `foretell show {name}` lists them')
            return move_alias(connection, name, alias, version, expected, _now())

    def remove_alias(self, name: str, alias: str, expected: int | Expected | None = ANY) -> AliasChange:
        """Drop `alias` if it says `expected` now. Raises `Conflict` or `NotFound`."""
        with self._database.write(name) as connection:
            return move_alias(connection, name, alias, None, expected, _now())

    def aliases(self, name: str) -> dict[str, int]:
        """Alias → version number."""
        with self._database.read() as connection:
            return read_aliases(connection, name)

    def alias_history(self, name: str) -> list[AliasChange]:
        """Every move of every alias of `name`, oldest first."""
        with self._database.read() as connection:
            return read_history(connection, name)

    def change_token(self) -> int:
        """A number that differs after any change of versions or aliases; one cheap read, made for polling."""
        return self._database.change_token()

    # --- helpers ----------------------------------------------------------------------------------------------

    def _newest(self, name: str) -> VersionInfo | None:
        with self._database.read() as connection:
            return _newest_of(connection, name)

    def _unknown(self, name: str) -> Any:
        raise NotFound(f'no model "{name}" in the store. {did_you_mean(name, self.names())}')


def _place(info: VersionInfo) -> str:
    return f"{PACKAGES}/{info.name}/{info.number}"


def _is(name: str, number: int) -> sa.ColumnElement[bool]:
    return (VERSIONS.c.name == name) & (VERSIONS.c.number == number)


def _versions_of(connection: sa.Connection, name: str) -> list[VersionInfo]:
    query = sa.select(VERSIONS).where(VERSIONS.c.name == name).order_by(VERSIONS.c.number)
    return [_info(row) for row in connection.execute(query)]


def _newest_of(connection: sa.Connection, name: str) -> VersionInfo | None:
    found = _versions_of(connection, name)
    return found[-1] if found else None


def _next_number(connection: sa.Connection, name: str) -> int:
    last = connection.execute(sa.select(MODELS.c.last_number).where(MODELS.c.name == name)).scalar()
    if last is None:
        connection.execute(MODELS.insert().values(name=name, last_number=1))
        return 1
    connection.execute(MODELS.update().where(MODELS.c.name == name).values(last_number=last + 1))
    return int(last) + 1


@contextmanager
def _full_disk_named(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, NotReady) as error:
        raise PackageError(
            f'"{name}" was not added: {error}. Nothing was registered; mend that'
            " (free space, permissions) and add it again"
        ) from error
