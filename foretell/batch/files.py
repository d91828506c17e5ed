"""INPUT as people name it (files, folders, globs, URLs) → the files that are read, in a fixed order, with the mark by
which a change is noticed. Reads no contents.
"""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import fsspec
import msgspec
import xxhash

from foretell.batch.spec import Seen
from foretell.core.errors import InvalidInput

InputFormat = Literal["parquet", "csv", "jsonl", "arrow", "files"]

_SUFFIXES: dict[str, InputFormat] = {
    **dict.fromkeys((".parquet", ".parq", ".pq"), "parquet"),
    **dict.fromkeys((".csv", ".tsv", ".csv.gz", ".tsv.gz"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"), "jsonl"),
    **dict.fromkeys((".arrow", ".feather", ".ipc", ".arrows"), "arrow"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".txt", ".md"), "files"),
}
_MARKS = (
    "ETag",
    "etag",
    "checksum",
    "sha256",
    "md5Hash",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "ino",
)


class InputFile(msgspec.Struct, frozen=True):
    """One file as a sequence of rows, or (`format` files) many files of one row each, named in `members`.

    `partition`: the values of a Hive layout (month=3) in its path, numbers where they are numbers in all files.
    `filesystem` is fsspec's.
    """

    path: str
    format: InputFormat
    seen: Seen
    filesystem: Any
    partition: Mapping[str, str | int] = {}
    members: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The partition as a folder."""
        return "/".join(f"{key}={value}" for key, value in self.partition.items())


def find_inputs(paths: Sequence[str]) -> list[InputFile]:
    """Every file that `paths` mean, in a fixed order. Raises `InvalidInput` where there is none, where the forms are
    mixed or unknown, or where the driver of a URL is not installed.
    """
    found = [file for path in paths for file in _find(path)]
    forms = sorted({file.format for file in found})
    if len(forms) > 1:
        raise InvalidInput(f"the input mixes {' and '.join(forms)}; name the files of one form, with a glob if need be")
    keys = {tuple(file.partition) for file in found}
    if len(keys) > 1:
        raise InvalidInput(f"the partitions differ: {' and '.join('/'.join(key) or 'none' for key in sorted(keys))}")
    found = _typed(found)
    return _joined(found) if forms == ["files"] else found


def seen_now(file: InputFile) -> Seen:
    """The file as it is now. Raises `InvalidInput` where it is gone."""
    try:
        file.filesystem.invalidate_cache()
        return _seen(file.filesystem, file.path, file.filesystem.info(file.path))
    except OSError as error:
        raise InvalidInput(f'"{file.path}" cannot be read: {error}') from None


def _find(path: str) -> list[InputFile]:
    try:
        filesystem, root = fsspec.core.url_to_fs(path)
        filesystem.invalidate_cache()
        infos = _infos(filesystem, root)
    except ImportError as error:
        raise InvalidInput(f'"{path}": {error}') from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f'"{path}" cannot be read: {error}') from None
    base = root if filesystem.isdir(root) else posixpath.dirname(root.split("*")[0])
    files = []
    for name, info in sorted(infos.items()):
        relative = name[len(base) :].lstrip("/") if name.startswith(base) else posixpath.basename(name)
        if any(part.startswith(("_", ".")) for part in relative.split("/")):
            continue
        form = _format(name)
        if form is None:
            if len(infos) == 1:
                raise InvalidInput(f'"{path}": its form is unknown; known are {", ".join(_SUFFIXES)}')
            continue
        files.append(InputFile(name, form, _seen(filesystem, name, info), filesystem, _partition(relative)))
    if not files:
        raise InvalidInput(f'"{path}": no file of a known form is there; known are {", ".join(_SUFFIXES)}')
    return files


def _infos(filesystem: Any, root: str) -> dict[str, dict[str, Any]]:
    if any(mark in root for mark in "*?[") and not filesystem.exists(root):
        found = filesystem.glob(root, detail=True)
        return {name: info for name, info in found.items() if info.get("type") != "directory"}
    if filesystem.isdir(root):
        return dict(filesystem.find(root, detail=True))
    return {root: filesystem.info(root)}


def _format(name: str) -> InputFormat | None:
    base = posixpath.basename(name).lower()
    return next((form for suffix, form in _SUFFIXES.items() if base.endswith(suffix)), None)


def _seen(filesystem: Any, name: str, info: Mapping[str, Any]) -> Seen:
    return Seen(filesystem.unstrip_protocol(name), int(info.get("size") or 0), _stamp(info))


def _stamp(info: Mapping[str, Any]) -> str:
    """What the file system says of a file that changes when its contents do."""
    told = {key: str(info[key]) for key in _MARKS if info.get(key) is not None}
    return xxhash.xxh3_128_hexdigest(repr(sorted(told.items())).encode())


def _partition(relative: str) -> dict[str, str | int]:
    pairs = (part.partition("=") for part in relative.split("/")[:-1] if "=" in part)
    return {key: value for key, _, value in pairs}


def _typed(files: list[InputFile]) -> list[InputFile]:
    """Values of partitions as numbers, where every file has one there (03 is none)."""
    numbers = {key for key in files[0].partition if all(_is_number(str(file.partition[key])) for file in files)}

    def typed(file: InputFile) -> InputFile:
        values = {key: int(value) if key in numbers else value for key, value in file.partition.items()}
        return msgspec.structs.replace(file, partition=values)

    return [typed(file) for file in files] if numbers else files


def _is_number(text: str) -> bool:
    return text.isdecimal() and str(int(text)) == text and int(text) < 2**63


def _joined(files: Iterable[InputFile]) -> list[InputFile]:
    """Files of one row each as one sequence of rows for each partition."""
    groups: dict[tuple[str, str], list[InputFile]] = {}
    for file in files:
        groups.setdefault((file.folder, type(file.filesystem).__name__), []).append(file)
    joined = []
    for members in groups.values():
        stamp = xxhash.xxh3_128_hexdigest(msgspec.json.encode([file.seen for file in members]))
        path = posixpath.commonpath([file.path for file in members]) if len(members) > 1 else members[0].path
        size = sum(file.seen.size for file in members)
        first = members[0]
        seen = Seen(first.filesystem.unstrip_protocol(path), size, stamp)
        names = tuple(file.path for file in members)
        joined.append(InputFile(path, "files", seen, first.filesystem, first.partition, names))
    return joined
