"""What `add` and `pack` share: a model file to a package folder, with the user's own keys and sample. No store."""

from pathlib import Path
from typing import Any

import msgspec

from foretell.core.errors import ConfigError, PackageError
from foretell.importers import import_model
from foretell.importers.draft import LlmChoices, Progress, Report
from foretell.store.manifest import Manifest
from foretell.store.package import SAMPLE, Package, unzip_package
from foretell.store.sample import read_sample


def make_package(
    source: Path | str,
    out: Path,
    trust_code: bool,
    description: str,
    sample: Path | None,
    extra: Path | None,
    report: Report,
    choices: LlmChoices = LlmChoices(),
    progress: Progress = lambda doing, share: None,
) -> Manifest:
    """Import `source` (a path, or hf://owner/name) into `out`.

    Raises what the importer raises, `PackageError` for a sample that does not fit.
    """
    config = read_extra(extra)
    if description:
        config["description"] = description
    if (path := Path(source)).is_file() and path.suffix == ".zip":
        source = unzip_package(path, out.with_name(out.name + ".unzipped"))
    manifest = import_model(
        source, out, trust_code=trust_code, config=config, choices=choices, report=report, progress=progress
    )
    if sample is not None:
        try:
            text = sample.read_bytes()
        except OSError as error:
            raise PackageError(f"{sample}: {error.strerror or error}; name a JSON file of columns") from None
        read_sample(text, manifest.signature.inputs, str(sample))
        (out / SAMPLE).write_bytes(text)
    return Package.open(out).manifest


def read_extra(path: Path | None) -> dict[str, Any]:
    """Keys of model.toml from a TOML file, none without one. Raises `ConfigError` that names the file."""
    if path is None:
        return {}
    try:
        return msgspec.toml.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; name a readable TOML file") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
