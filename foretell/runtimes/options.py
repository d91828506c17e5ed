"""Per-runtime options: the [options] table of model.toml, decoded strictly. Knows no runtime."""

from typing import TypeVar

import msgspec

from foretell.core.errors import ConfigError, PackageError, did_you_mean
from foretell.core.settings import ReplicaSettings
from foretell.core.tensor import Signature
from foretell.store.manifest import Manifest

Options = TypeVar("Options", bound=msgspec.Struct)


def read_options(manifest: Manifest, kind: type[Options]) -> Options:
    """Decode `manifest.options` as `kind`. Raises `PackageError` naming the key and the nearest known one."""
    known = [field.name for field in msgspec.structs.fields(kind)]
    for key in manifest.options:
        if key not in known:
            raise PackageError(
                f'model.toml: options.{key} is not known to the runtime "{manifest.runtime}".'
                f" {did_you_mean(key, known)}"
            )
    try:
        return msgspec.convert(manifest.options, kind)
    except msgspec.ValidationError as error:
        raise PackageError(f"model.toml: options: {error}") from None


def artifact_signature(manifest: Manifest, declared: Signature | None) -> Signature:
    """The signature of an artifact that cannot tell it itself: model.toml's own, unless transforms change it.

    With transforms the artifact's signature stands in `options.signature` (`declared`).
    """
    if declared is not None:
        return declared
    if manifest.transform.before or manifest.transform.after:
        raise PackageError(
            f'model.toml: a "{manifest.runtime}" model with transforms needs its own signature (what the'
            " model takes and makes between the transforms) as options.signature"
        )
    return manifest.signature


def only_cpu(settings: ReplicaSettings, runtime: str) -> None:
    """Raise `ConfigError` if a device is asked for that this runtime cannot use."""
    if settings.device not in ("auto", "cpu"):
        raise ConfigError(
            f'device "{settings.device}": the runtime "{runtime}" runs on the CPU only; set device = "cpu"'
        )
