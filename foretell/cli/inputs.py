"""What `foretell predict` is given on the command line → columns. Knows the signature, not the model."""

import csv
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import typer

from foretell.core.errors import InvalidInput
from foretell.core.tensor import Signature, TensorSpec
from foretell.store.sample import decode_columns


class Given(msgspec.Struct, frozen=True):
    """The inputs as flags: `texts` are positional, `json` is text or @file, "-" means standard input."""

    texts: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    json: str = ""
    csv: str = ""


def read_columns(given: Given, signature: Signature) -> dict[str, Any]:
    """Columns for `signature` from what was given; exactly one kind. Raises `InvalidInput` or a usage error."""
    kinds = [
        name
        for name, value in (
            ("text", given.texts),
            ("--image", given.images),
            ("--json", given.json),
            ("--csv", given.csv),
        )
        if value
    ]
    if len(kinds) != 1:
        takes = ", ".join(map(str, signature.inputs))
        found = " and ".join(kinds) or "nothing"
        raise typer.BadParameter(
            f"give one of text, --image, --json or --csv, got {found}; the model takes {takes}", param_hint="INPUT"
        )
    if given.json:
        return read_json(_text_of(given.json, at_sign=True), signature)
    if given.csv:
        return read_csv(_text_of(given.csv), signature)
    spec = _one_bytes_input(signature, kinds[0])
    if given.images:
        return {spec.name: [_bytes_of(path) for path in given.images]}
    texts = list(given.texts)
    if texts == ["-"]:
        texts = sys.stdin.read().splitlines()
    return {spec.name: texts}


def _one_bytes_input(signature: Signature, kind: str) -> TensorSpec:
    specs = signature.inputs
    if len(specs) != 1 or specs[0].datatype != "BYTES":
        takes = ", ".join(map(str, specs))
        raise InvalidInput(f"{kind} needs a model with one BYTES input; this one takes {takes}. Use --json or --csv")
    return specs[0]


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}") from None


def _text_of(value: str, at_sign: bool = False) -> str:
    if value in ("-", "@-"):
        return sys.stdin.read()
    if at_sign and not value.startswith("@"):
        return value
    path = Path(value[1:] if at_sign else value)
    try:
        return _bytes_of(path).decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: not UTF-8 text") from None


def read_json(text: str, signature: Signature) -> dict[str, Any]:
    """`{"input": [rows…]}`; with one input also a bare list of rows. BYTES that are no text: {"b64": "…"}."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"--json: {error}") from None
    if isinstance(value, list) and len(signature.inputs) == 1:
        value = {signature.inputs[0].name: value}
    if not isinstance(value, dict):
        raise InvalidInput('--json: expected an object of columns, {"input": [rows…]}')
    bytes_specs = tuple(s for s in signature.inputs if s.datatype == "BYTES" and isinstance(value.get(s.name), list))
    return {**value, **decode_columns({s.name: value[s.name] for s in bytes_specs}, bytes_specs)}


def read_csv(text: str, signature: Signature) -> dict[str, Any]:
    """A table with a header: columns by input name, or for a model with one vector input all columns in order."""
    rows = list(csv.reader(StringIO(text)))
    if len(rows) < 2:
        raise InvalidInput("--csv: expected a header line and at least one row")
    header, body = [name.strip() for name in rows[0]], [row for row in rows[1:] if row]
    for position, row in enumerate(body, 2):
        if len(row) != len(header):
            raise InvalidInput(f"--csv: line {position} has {len(row)} cells, the header has {len(header)}")
    specs = signature.inputs
    if len(specs) == 1 and len(specs[0].shape) == 2:
        return {specs[0].name: [[_cell(c, specs[0], h) for c, h in zip(row, header, strict=True)] for row in body]}
    missing = [spec.name for spec in specs if spec.name not in header]
    if missing:
        raise InvalidInput(f'--csv: no column "{missing[0]}"; the header has {", ".join(header)}')
    return {s.name: [_shaped(_cell(row[header.index(s.name)], s, s.name), s) for row in body] for s in specs}


def _shaped(value: Any, spec: TensorSpec) -> Any:
    """A cell as a row of an input whose rows are [], [1], [1, 1] …"""
    for _ in spec.shape[1:]:
        value = [value]
    return value


def _cell(text: str, spec: TensorSpec, column: str) -> Any:
    if spec.datatype == "BYTES":
        return text
    if spec.datatype == "BOOL":
        return text.strip().lower() in ("1", "true", "yes")
    try:
        if spec.datatype.startswith("FP"):
            return float(text) if text.strip() else float("nan")
        return int(text)
    except ValueError:
        raise InvalidInput(f'--csv: column "{column}" holds "{text}", expected {spec.datatype}') from None
