"""A package: the files of one model version, their digest, and its check. Does not know how to run a model.

A sealed package holds `digest.json` with the sha256 of each file, so that a damaged copy names the damaged file.
"""

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec
import platformdirs

from foretell.core.errors import PackageError
from foretell.core.tensor import Tensors
from foretell.store.manifest import Manifest, decode_manifest, manifest_document
from foretell.store.sample import read_sample

MANIFEST = "model.toml"
SAMPLE = "sample.json"
SEAL = "digest.json"
_IGNORED = frozenset({"__pycache__", ".DS_Store"})


class Seal(msgspec.Struct, frozen=True):
    """`digest` of the package and the sha256 of each of its files by relative path (see `file_hashes`)."""

    digest: str
    files: dict[str, str]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_hash(manifest: Manifest) -> str:
    """sha256 of the canonical JSON of model.toml without [package] and [lineage]: contents have no name and no past."""
    document = {key: value for key, value in manifest_document(manifest).items() if key not in ("package", "lineage")}
    return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()


def package_files(folder: Path) -> list[str]:
    """Relative POSIX paths of a package's files, sorted. Raises `PackageError` on a symbolic link."""
    found: list[str] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _IGNORED]
        for name in (*folders, *files):
            if Path(root, name).is_symlink():
                raise PackageError(f"{Path(root, name)} is a symbolic link; a package holds plain files only")
        here = Path(root).relative_to(folder)
        found.extend((here / name).as_posix() for name in files if name not in _IGNORED)
    return sorted(name for name in found if name != SEAL)


def file_hashes(folder: Path, manifest: Manifest) -> dict[str, str]:
    """The sha256 of each file of the package; that of model.toml is `manifest_hash`."""
    return {
        name: manifest_hash(manifest) if name == MANIFEST else _sha256(folder / name) for name in package_files(folder)
    }


def digest_of(hashes: Mapping[str, str]) -> str:
    """The package digest: sha256 over the sorted lines "path sha256"."""
    lines = "".join(f"{name} {value}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise PackageError(f"{folder} is not a package: it has no {MANIFEST}") from None
    return decode_manifest(text, str(path))


def _read_seal(folder: Path) -> Seal | None:
    try:
        return msgspec.json.decode((folder / SEAL).read_bytes(), type=Seal)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageError(f"{folder / SEAL} is damaged: {error}") from None


def _compare(folder: Path, seal: Seal, hashes: Mapping[str, str]) -> None:
    for name, expected in seal.files.items():
        if name not in hashes:
            raise PackageError(f"{folder / name} is missing; the package was sealed with it. Fetch a good copy")
        if hashes[name] != expected:
            raise PackageError(
                f"{folder / name} differs from the sealed package: its sha256 is {hashes[name][:16]}…, expected"
                f" {expected[:16]}…. Fetch a good copy, or remove {SEAL} if you changed the package on purpose"
            )
    for name in hashes:
        if name not in seal.files:
            raise PackageError(f"{folder / name} was not in the package when it was sealed; remove it")
    if digest_of(seal.files) != seal.digest:
        raise PackageError(f"{folder / SEAL} is damaged: its digest is not that of its files")


def seal(folder: Path) -> Seal:
    """Write `digest.json` into a finished package folder and return it. Raises `PackageError` if incomplete."""
    package = Package.open(folder, verify=False)
    hashes = file_hashes(folder, package.manifest)
    result = Seal(digest_of(hashes), hashes)
    (folder / SEAL).write_bytes(encode_seal(result))
    return result


def encode_seal(sealed: Seal) -> bytes:
    """The text of digest.json."""
    return msgspec.json.format(msgspec.json.encode(sealed), indent=1)


@dataclass(frozen=True)
class Package:
    """An opened package: a local folder whose manifest decodes and whose artifact is there.

    `digest` is the sha256 (hex) over all files, the same under any name (see `digest_of`).
    """

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, path: str | Path, verify: bool = True, cache: Path | None = None) -> "Package":
        """Open a package folder or a .zip of one (extracted once into `cache`, by default the user's cache).

        With `verify` every file is hashed and compared with `digest.json` where the package has one; without
        it the sealed digest is believed. Raises `PackageError` that names the file that is missing or differs.
        """
        folder = Path(path)
        if folder.is_file() and zipfile.is_zipfile(folder):
            folder = unzip_package(folder, cache or Path(platformdirs.user_cache_dir("foretell"), "unzipped"))
        if not folder.is_dir():
            raise PackageError(f"{folder} is not a package: expected a folder with {MANIFEST}, or a .zip of one")
        manifest = _read_manifest(folder)
        if not _inside(manifest.artifact) or not (folder / manifest.artifact).exists():
            raise PackageError(f'{folder / MANIFEST}: artifact "{manifest.artifact}" is not in the package')
        sealed = _read_seal(folder)
        if sealed and not verify:
            return cls(folder, manifest, sealed.digest)
        hashes = file_hashes(folder, manifest)
        if sealed:
            _compare(folder, sealed, hashes)
        return cls(folder, manifest, digest_of(hashes))

    @property
    def artifact(self) -> Path:
        """The file that the runtime loads."""
        return self.path / self.manifest.artifact

    def file(self, name: str) -> Path:
        """The path of the package's file `name` (as a transform step names it). `PackageError` if it is absent."""
        if not _inside(name) or not (self.path / name).is_file():
            raise PackageError(f'{self.path} holds no file "{name}", which its {MANIFEST} asks for')
        return self.path / name

    def sample(self) -> Tensors | None:
        """The rows of sample.json as the signature's inputs; None when the package has none.

        Raises `PackageError` that names the column when they disagree with the signature.
        """
        path = self.path / SAMPLE
        if not path.is_file():
            return None
        return read_sample(path.read_bytes(), self.manifest.signature.inputs, str(path))


def zip_package(folder: Path, target: Path) -> Path:
    """Write the files of a package folder to the .zip `target`, stored in sorted order. Returns `target`."""
    Package.open(folder, verify=False)
    names = package_files(folder) + ([SEAL] if (folder / SEAL).is_file() else [])
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / name, name)
    return target


def unzip_package(archive: Path, cache: Path) -> Path:
    """Extract a zipped package below `cache` and return its folder; equal zips are extracted once.

    Raises `PackageError` if the zip is damaged, holds paths that leave it, or holds no model.toml.
    """
    target = cache / _sha256(archive)
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".unzip-", dir=cache))
        try:
            _extract(archive, staging)
            # Another process may have won; both extracted the same bytes.
            if not target.is_dir():
                try:
                    staging.rename(target)
                except OSError:
                    if not target.is_dir():
                        raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return _package_root(target, archive)


def _extract(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                if not _inside(name.rstrip("/")):
                    raise PackageError(f'{archive} holds "{name}", a path that leaves the package')
            opened.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise PackageError(f"{archive} is damaged: {error}") from None


def _package_root(folder: Path, archive: Path) -> Path:
    if (folder / MANIFEST).is_file():
        return folder
    nested = [entry for entry in folder.iterdir() if (entry / MANIFEST).is_file()]
    if len(nested) != 1:
        raise PackageError(f"{archive} is not a package: it has no {MANIFEST}")
    return nested[0]
