"""The tables of docs/ list the keys, defaults, metrics and routes that the code has, and no others."""

import re
import tomllib
from typing import Any

import msgspec
import pytest

from foretell.app.config import (
    ENVIRONMENT,
    Config,
    HardwareSettings,
    ModelSettings,
    ObservationSettings,
    ServerSettings,
    StoreSettings,
)
from foretell.core.errors import ForetellError
from foretell.core.generation import Load, Sampling
from foretell.core.observation import Observation, TokenUse
from foretell.core.settings import BatchingSettings, CacheSettings, GenerationSettings, ReplicaSettings
from foretell.core.tensor import TensorSpec
from foretell.server.grpc import GrpcSettings
from foretell.server.http import HttpSettings
from foretell.store import manifest
from foretell.telemetry.metrics import LiveVersion, Metrics
from tests.repo.repository import ROOT, markdown_tables

PACKAGES = {
    "Top level": manifest.Manifest,
    "[[signature.inputs]] and [[signature.outputs]]": TensorSpec,
    "[package]": manifest.Identity,
    "[transform]": manifest.Transform,
    'kind = "text"': manifest.TextStep,
    'kind = "image"': manifest.ImageStep,
    'kind = "pool"': manifest.PoolStep,
    'kind = "normalize"': manifest.NormalizeStep,
    'kind = "labels"': manifest.LabelsStep,
    'kind = "custom"': manifest.CustomStep,
    "[batching]": BatchingSettings,
    "[cache]": CacheSettings,
    "[replicas]": ReplicaSettings,
    "[generation]": GenerationSettings,
    "[llm]": manifest.LlmOptions,
    "[llm.sampling]": Sampling,
    "[llm.perplexity]": manifest.Perplexity,
    "[parity]": manifest.Parity,
    "[lineage]": manifest.Lineage,
}
SERVING = {
    "Top level": Config,
    "[server]": ServerSettings,
    "[server.http]": HttpSettings,
    "[server.grpc]": GrpcSettings,
    "[observations]": ObservationSettings,
    "[store]": StoreSettings,
    "[hardware]": HardwareSettings,
    "[models.NAME]": ModelSettings,
}
CASES = [("packages.md", *case) for case in PACKAGES.items()] + [("serving.md", *case) for case in SERVING.items()]


def default(field: msgspec.structs.FieldInfo) -> str:
    """A field's default as the tables write it: in TOML, nothing for tables and for None."""
    if field.required:
        return "required"
    value: Any = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None or isinstance(value, msgspec.Struct):
        return ""
    return f"`{msgspec.json.encode(value).decode().replace(',', ', ')}`"


@pytest.mark.parametrize(("page", "heading", "struct"), CASES, ids=[f"{p} {h}" for p, h, _ in CASES])
def test_the_page_lists_every_key_with_its_default(page, heading, struct):
    rows = markdown_tables(ROOT / "docs" / page)[heading]
    told = {key.strip("`"): value for key, value, _ in rows}
    real = {field.encode_name: default(field) for field in msgspec.structs.fields(struct)}
    if heading in ("Top level", "[models.NAME]"):
        # Keys that open a table of their own stand there with their defaults.
        real = {k: "" if told.get(k) == "" and v in ("", "`{}`") else v for k, v in real.items()}
    assert told == real


def test_the_page_lists_every_environment_variable():
    rows = markdown_tables(ROOT / "docs/serving.md")["Environment"]
    assert {v.strip("`"): k.strip("`") for v, k in rows} == {v: ".".join(path) for v, path in ENVIRONMENT.items()}


def test_the_page_lists_every_metric_with_its_kind_and_labels():
    live = LiveVersion("m", "1", replicas={"ready": 1}, batches=[(1, 1)], load=Load())
    metrics = Metrics(lambda: [live], lambda: {"sink": 0})
    metrics.consume([Observation("m", "1", "done", 0.0, 0.1, 0.1, 0.1, 1, 1, False, "rest", "", tokens=TokenUse(1))])
    real = {}
    for family in metrics.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels}
        real[name] = (family.type, labels - {"model", "version", "le"})
    rows = markdown_tables(ROOT / "docs/metrics.md")["Metrics"]
    told = {name.strip("`"): (kind, set(re.findall("`(.+?)`", labels))) for name, kind, labels, _ in rows}
    assert told == real


def test_the_page_lists_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    real = {re.split(r"[><=;\[ ]", line)[0] for line in project["dependencies"]}
    rows = markdown_tables(ROOT / "docs/dependencies.md")["Dependencies"]
    assert {name for cells in rows for name in re.findall("`(.+?)`", cells[0])} == real


def test_the_page_of_errors_names_the_codes_of_the_error_classes():
    rows = markdown_tables(ROOT / "docs/serving.md")["Errors"]
    classes = [ForetellError]
    for known in classes:
        classes += [c for c in known.__subclasses__() if c.__module__ == "foretell.core.errors"]
    codes = {(str(c.http_status), c.grpc_code) for c in classes}
    assert {(http, grpc) for http, grpc, _ in rows} <= codes
