"""Python files with a `predict` function: the file is the model, its SIGNATURE says what goes in and out."""

import runpy
from pathlib import Path

import msgspec

from foretell.core.errors import PackageError, UntrustedCode
from foretell.core.tensor import Signature
from foretell.importers.draft import Draft, copy_file

_EXAMPLE = (
    'SIGNATURE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],'
    ' "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}]}'
)


def import_file(path: Path, draft: Draft, kind: str) -> None:
    """Run the file to read SIGNATURE (or take it from the configuration). Raises `UntrustedCode`, `PackageError`."""
    if not draft.trusted:
        raise UntrustedCode(
            f"{path}: loading it runs its Python code, which can do anything this process can. Pass --trust-code if"
            " you trust whoever wrote it"
        )
    draft.artifact = copy_file(path, draft.folder, path.name)
    draft.runtime, draft.runs_code = "function", True
    try:
        names = runpy.run_path(str(path))
    except Exception as error:
        raise PackageError(f"{path} failed while it loaded: {type(error).__name__}: {error}") from None
    if not callable(names.get("predict")):
        raise PackageError(f"{path} defines no function `predict`")
    declared = draft.config.get("signature", names.get("SIGNATURE"))
    if declared is None:
        raise PackageError(f"{path} does not say what it takes and makes; add, for example, {_EXAMPLE}")
    try:
        draft.signature = msgspec.convert(declared, Signature)
    except msgspec.ValidationError as error:
        raise PackageError(f"{path}: SIGNATURE: {error}. For example: {_EXAMPLE}") from None
