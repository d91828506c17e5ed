"""A model may be kept in its native form or as ONNX: try both, prove that they agree, keep the faster one."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretell.core.model import Predictor
from foretell.core.settings import ReplicaSettings
from foretell.core.tensor import Signature, Tensors
from foretell.importers.draft import Draft, sample_rows
from foretell.importers.parity import ROWS, prove, speedup
from foretell.runtimes import load
from foretell.store.manifest import Manifest, Parity, encode_manifest
from foretell.store.package import MANIFEST, Package

WORTH_IT = 1.0
"""The converted form must be at least this many times as fast, or the native one stays."""


@dataclass
class Form:
    """One way to hold a model: the runtime, the artifact it loads (already in the form's folder), its signature."""

    runtime: Any
    artifact: str
    signature: Signature
    options: dict[str, Any] = field(default_factory=dict)
    converter: str = ""
    runs_code: bool = False


Maker = Callable[[Path], Form]
"""Writes a form's artifact into a folder. May raise anything when the model cannot be held that way."""


def settle(draft: Draft, native: Maker, converted: Maker, label: str, rows: Tensors | None = None) -> None:
    """Fill `draft` with the faster of two forms that agree on sample rows, the native one in doubt.

    Raises `PackageError` when not even the native form loads. What was chosen and why goes to `draft.report`.
    """
    with tempfile.TemporaryDirectory(prefix="foretell-import-") as scratch:
        kept_at = Path(scratch, "native")
        kept = _make(native, kept_at)
        plain = _open(kept_at, kept)
        inputs = rows if rows is not None else sample_rows(kept.signature, ROWS)
        draft.sample = inputs
        draft.report(f"{label}: converting to ONNX and comparing on {ROWS} sample rows")
        try:
            at = Path(scratch, "onnx")
            form = _make(converted, at)
            fast = _open(at, form)
            parity = prove(plain, fast, inputs, label)
            factor = speedup(plain, fast, inputs)
        except Exception as error:
            draft.report(f"kept as {kept.runtime}: no equal ONNX form ({type(error).__name__}: {_short(error)})")
            _take(draft, kept_at, kept, None)
            return
        finally:
            plain.close()
        fast.close()
        if factor < WORTH_IT and not kept.runs_code:
            draft.report(f"kept as {kept.runtime}: as ONNX it runs at {factor:.2f}× the speed")
            _take(draft, kept_at, kept, None)
            return
        draft.report(
            f"converted to ONNX: {factor:.1f}× as fast, outputs differ by at most {parity.max_abs_diff:.2g}"
            f" (tolerance {parity.tolerance:g})"
        )
        _take(draft, at, form, parity)


def _make(maker: Maker, folder: Path) -> Form:
    folder.mkdir()
    return maker(folder)


def _open(folder: Path, form: Form) -> Predictor:
    # Trusted: the form was written a moment ago from a model that is in this process already.
    manifest = Manifest(form.runtime, form.artifact, form.signature, options=form.options, trust_code=form.runs_code)
    (folder / MANIFEST).write_text(encode_manifest(manifest))
    return load(Package.open(folder, verify=False), ReplicaSettings(threads=1), trust_code=True)


def _take(draft: Draft, folder: Path, form: Form, parity: Parity | None) -> None:
    shutil.copyfile(folder / form.artifact, draft.folder / form.artifact)
    draft.runtime, draft.artifact, draft.signature = form.runtime, form.artifact, form.signature
    draft.options, draft.converter, draft.runs_code = form.options, form.converter, form.runs_code
    draft.parity = parity
    if form.runs_code:
        draft.report("loading it runs code (types that the safe loader cannot vouch for): it needs --trust-code")


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no reason given"
