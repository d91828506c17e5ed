"""From what people write (a reference, a package, a model file) to an opened package. Runs no model."""

import os
import tempfile
from pathlib import Path

import msgspec

from foretell.core.errors import PackageError
from foretell.core.reference import check_name, parse_reference
from foretell.importers import import_model
from foretell.importers.draft import LlmChoices
from foretell.store.package import MANIFEST, Package
from foretell.store.store import Store


class Opened(msgspec.Struct, frozen=True):
    """A package and how to call it: `name`, and the `version` number where it came from a store."""

    name: str
    version: str
    package: Package


def open_store(home: str | None = None, database: str | None = None, files: str = "") -> Store:
    """The store at `home` with the database at `database` (default: FORETELL_HOME and FORETELL_DATABASE, then the
    user's own) and clients' files at `files`. Raises `ConfigError` if it cannot be opened.
    """
    return Store.open(
        home or os.environ.get("FORETELL_HOME") or None,
        database or os.environ.get("FORETELL_DATABASE") or None,
        files=Path(files) if files else None,
    )


def is_path(target: str) -> bool:
    """Whether `target` means a file or folder rather than a reference.

    >>> is_path("./model.onnx"), is_path("digits@2")
    (True, False)
    """
    return "/" in target or "\\" in target or Path(target).exists()


def open_target(target: str, store: Store | None, scratch: Path, trust_code: bool = False) -> Opened:
    """Open a reference of `store`, a package (folder or zip), or a model file, which is imported below `scratch`.

    Raises `NotFound`, `PackageError` (also for a path that is not there) or what the importer raises.
    """
    if not is_path(target):
        reference = parse_reference(target)
        opened = store or open_store()
        try:
            info = opened.resolve(reference)
            return Opened(info.name, str(info.number), opened.fetch(info))
        finally:
            if store is None:
                opened.close()
    path = Path(target)
    if not path.exists():
        raise PackageError(f"{target}: no such file or folder")
    if is_package(path):
        package = Package.open(path)
        return Opened(package.manifest.package.name or name_of(path), "1", package)
    name = name_of(path)
    out = Path(tempfile.mkdtemp(dir=scratch)) / name
    import_model(path, out, trust_code=trust_code, choices=LlmChoices(measure=False))
    return Opened(name, "1", Package.open(out))


def is_package(path: Path) -> bool:
    """Whether a path is a package already: a folder with model.toml, or a zip."""
    return (path / MANIFEST).is_file() or path.suffix == ".zip"


def name_of(path: Path) -> str:
    """What a model is called whose file or folder is `path`."""
    path = Path(os.path.abspath(path))  # a link is called as it is called, not as what it leads to
    return check_name((path.name if path.is_dir() else path.stem).replace(" ", "-"))
