"""foretell.toml, flags and environment, read once into one value. Nobody below `app` sees it whole."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from foretell.core.errors import ConfigError, did_you_mean
from foretell.server.grpc import GrpcSettings
from foretell.server.http import HttpSettings


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the server listens. `grpc_port` -1: no gRPC; port 0: any free port. `grace_s`: time to drain.

    `poll_s`: how often the store is asked for new versions and moved aliases.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int = 8081
    grace_s: float = 30.0
    poll_s: float = 0.5
    trust_code: bool = False
    http: HttpSettings = HttpSettings()
    grpc: GrpcSettings = GrpcSettings()


class ObservationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of finished requests. `enabled` false: nothing, not even metrics. `folder` "": no Parquet files.

    `access_log`: a file, "-" for standard error, "" for none. `sample_rate`: share of requests kept with inputs
    and outputs. `capacity`: observations that may wait for the writers; more are dropped and counted.
    """

    enabled: bool = True
    access_log: str = "-"
    folder: str = ""
    sample_rate: float = 0.0
    capacity: int = 65536


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`home`: folder or fsspec URL of the packages (default: the user's data folder). `database`: SQLAlchemy URL
    of the shared database (default: SQLite in the store). `files`: folder of this machine for what clients upload
    and batches of calls (default: `files` in the store's folder).
    """

    home: str = ""
    database: str = ""
    files: str = ""


class HardwareSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this machine costs, for cost per inference. The default is the price of a small 2-core cloud VM."""

    dollars_per_hour: float = 0.10


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Overrides of one model's model.toml; only the keys given replace the package's own."""

    batching: dict[str, Any] = msgspec.field(default_factory=dict)
    cache: dict[str, Any] = msgspec.field(default_factory=dict)
    replicas: dict[str, Any] = msgspec.field(default_factory=dict)
    generation: dict[str, Any] = msgspec.field(default_factory=dict)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `foretell serve` can be told. `serve`: references or paths of the models."""

    serve: tuple[str, ...] = ()
    server: ServerSettings = ServerSettings()
    observations: ObservationSettings = ObservationSettings()
    store: StoreSettings = StoreSettings()
    hardware: HardwareSettings = HardwareSettings()
    models: dict[str, ModelSettings] = msgspec.field(default_factory=dict)


ENVIRONMENT = {
    "FORETELL_HOME": ("store", "home"),
    "FORETELL_DATABASE": ("store", "database"),
    "FORETELL_DOLLARS_PER_HOUR": ("hardware", "dollars_per_hour"),
}


def load_config(
    path: Path | None = None, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] = os.environ
) -> Config:
    """Resolve defaults < file < environment < flags. `flags` is nested like the file; None values are left out.

    Raises `ConfigError` that names the key, what was expected, and the nearest known key.
    """
    document: dict[str, Any] = {}
    where = "configuration"
    if path is not None:
        where = str(path)
        try:
            document = msgspec.toml.decode(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}; name a readable TOML file") from None
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}: {error}") from None
    for variable, (table, key) in ENVIRONMENT.items():
        if variable in environment:
            document.setdefault(table, {})[key] = environment[variable]
    _merge(document, flags or {})
    config: Config = _decode(document, Config, where)
    return config


def override(name: str, group: str, own: Any, given: Mapping[str, Any]) -> Any:
    """The package's own settings with the operator's keys on top (for model `name`, table `group`)."""
    if not given:
        return own
    return _decode({**msgspec.to_builtins(own), **given}, type(own), f"models.{name}.{group}")


def _decode(document: Mapping[str, Any], kind: Any, where: str) -> Any:
    try:
        # Environment values are text; numbers and booleans in them are meant.
        return msgspec.convert(document, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}.{_hint(str(error), kind)}") from None


_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]+)`(?: - at `\$\.?(?P<path>[^`]*)`)?")


def _hint(message: str, kind: Any) -> str:
    match = _UNKNOWN.search(message)
    if not match:
        return ""
    for part in filter(None, (match["path"] or "").split(".")):
        fields = {f.name: f.type for f in msgspec.structs.fields(kind)}
        kind = ModelSettings if part.startswith(("models", "[")) else fields[part]
    return " " + did_you_mean(match["key"], (f.name for f in msgspec.structs.fields(kind)))


def _merge(document: dict[str, Any], flags: Mapping[str, Any]) -> None:
    for key, value in flags.items():
        if isinstance(value, Mapping):
            _merge(document.setdefault(key, {}), value)
        elif value is not None:
            document[key] = value
