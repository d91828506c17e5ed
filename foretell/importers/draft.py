"""A package in the making: its folder, what will stand in model.toml, and its sample rows."""

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tomli_w
from PIL import Image

from foretell.core.errors import PackageError
from foretell.core.tensor import DTYPES, Signature, Tensor, Tensors, TensorSpec
from foretell.store.manifest import (
    AfterStep,
    BeforeStep,
    CustomStep,
    ImageStep,
    Lineage,
    LlmOptions,
    Manifest,
    Parity,
    decode_manifest,
    encode_manifest,
)
from foretell.store.package import MANIFEST, SAMPLE
from foretell.store.sample import read_sample, write_sample

SAMPLE_ROWS = 4
"""Rows of a generated sample: enough to show batching, few enough to read."""

Report = Callable[[str], None]
Progress = Callable[[str, float], None]
"""Told what is being done and how much of it, from 0 to 1."""


class LlmChoices(msgspec.Struct, frozen=True):
    """How a language model is made into a package.

    `precision` of its linear layers (None: int4) and `block_size` (None: 32) weights that share a scale in int4.
    `evaluation`: the text that the loss of precision is measured on (None: a bundled one), unless `measure` is false.
    """

    precision: str | None = None
    block_size: int | None = None
    evaluation: Path | None = None
    measure: bool = True

    @property
    def given(self) -> bool:
        """Whether the user chose anything."""
        return (self.precision, self.block_size, self.evaluation) != (None, None, None)


@dataclass
class Draft:
    """What an importer fills in. `folder` already holds the artifact when `finish` is called.

    `config` are the user's own keys of model.toml; they win over what was inferred.
    """

    folder: Path
    trusted: bool
    config: Mapping[str, Any]
    report: Report
    choices: LlmChoices = LlmChoices()
    progress: Progress = lambda doing, share: None
    source: str = ""
    source_sha256: str = ""
    runtime: str = ""
    artifact: str = ""
    signature: Signature = field(default_factory=lambda: Signature((), ()))
    before: list[BeforeStep] = field(default_factory=list)
    after: list[AfterStep] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    runs_code: bool = False
    llm: LlmOptions | None = None
    parity: Parity | None = None
    converter: str = ""
    sample: Tensors | None = None

    def finish(self) -> Manifest:
        """Write model.toml (the user's keys on top) and sample.json. Raises `PackageError`."""
        inferred: dict[str, Any] = {
            "runtime": self.runtime,
            "artifact": self.artifact,
            "signature": msgspec.to_builtins(self.signature),
            "trust_code": self.runs_code,
            "lineage": msgspec.to_builtins(Lineage(self.source, self.source_sha256, self.converter)),
        }
        if self.before or self.after:
            inferred["transform"] = msgspec.to_builtins({"before": self.before, "after": self.after})
        if self.options:
            inferred["options"] = self.options
        if self.llm:
            inferred["llm"] = msgspec.to_builtins(self.llm, str_keys=True)
        if self.parity:
            inferred["parity"] = msgspec.to_builtins(self.parity)
        text = tomli_w.dumps({**inferred, **self.config})
        manifest = decode_manifest(text, "the configuration given with the model")
        if any(isinstance(step, CustomStep) for step in (*manifest.transform.before, *manifest.transform.after)):
            manifest = msgspec.structs.replace(manifest, trust_code=True)
        (self.folder / MANIFEST).write_text(encode_manifest(manifest))
        self._write_sample(manifest)
        return manifest

    def _write_sample(self, manifest: Manifest) -> None:
        path = self.folder / SAMPLE
        if path.exists():
            read_sample(path.read_bytes(), manifest.signature.inputs, SAMPLE)
            return
        sample = self.sample
        names = {spec.name for spec in manifest.signature.inputs}
        if sample is None or set(sample) != names:
            images = {step.input for step in manifest.transform.before if isinstance(step, ImageStep)}
            sample = sample_rows(manifest.signature, SAMPLE_ROWS, images=images)
        path.write_bytes(write_sample({name: array[:SAMPLE_ROWS] for name, array in sample.items()}))


def copy_file(source: Path, folder: Path, name: str = "") -> str:
    """Copy a file into the package; returns its name there. Raises `PackageError` if it cannot be read."""
    try:
        shutil.copyfile(source, folder / (name or source.name))
    except OSError as error:
        raise PackageError(f"{source}: {error.strerror or error}") from None
    return name or source.name


def sample_rows(signature: Signature, rows: int, seed: int = 0, images: Collection[str] = ()) -> Tensors:
    """Made-up inputs that agree with `signature`, the same for the same seed. Variable axes get 8.

    `images`: BYTES inputs that want an encoded image instead of text.
    """
    random = np.random.default_rng(seed)
    return {
        spec.name: _image_rows(rows) if spec.name in images else _rows(spec, rows, random) for spec in signature.inputs
    }


def _rows(spec: TensorSpec, rows: int, random: np.random.Generator) -> Tensor:
    shape = tuple(rows if i == 0 and d == -1 else 8 if d == -1 else d for i, d in enumerate(spec.shape))
    dtype = DTYPES[spec.datatype]
    if spec.datatype == "BYTES":
        array = np.empty(shape, dtype=object)
        array.reshape(-1)[:] = [f"This is sample text number {i + 1}.".encode() for i in range(array.size)]
        return array
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)


def _image_rows(rows: int) -> Tensor:
    array = np.empty(rows, dtype=object)
    ramp = np.arange(64, dtype=np.uint8)
    for i in range(rows):
        pixels = np.stack([np.add.outer(ramp, ramp), np.full((64, 64), 40 * i % 256), ramp[:, None] * np.ones(64)], -1)
        buffer = BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        array[i] = buffer.getvalue()
    return array
