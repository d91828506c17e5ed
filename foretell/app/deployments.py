"""From a package and the operator's settings to what is deployed; the one place where both meet."""

import msgspec

from foretell.accel.hardware import usable_cores
from foretell.app.config import Config, ModelSettings, override
from foretell.app.packages import is_path
from foretell.core.reference import parse_reference
from foretell.core.settings import GenerationSettings, ReplicaSettings
from foretell.fleet.spec import fit
from foretell.plane.spec import DeploymentSpec
from foretell.store.manifest import Manifest
from foretell.store.package import Package
from foretell.store.store import Store


def generation_settings(name: str, package: Package, config: Config) -> GenerationSettings:
    """How a language model generates; its draft may still be a reference of the store."""
    given = config.models.get(name, ModelSettings())
    settings: GenerationSettings = override(name, "generation", package.manifest.generation, given.generation)
    return settings


def replica_settings(name: str, manifest: Manifest, config: Config) -> ReplicaSettings:
    """The replicas that are asked for, before what was left open is fitted to a machine."""
    given = config.models.get(name, ModelSettings())
    settings: ReplicaSettings = override(name, "replicas", manifest.replicas, given.replicas)
    return settings


def with_draft(settings: GenerationSettings, store: Store) -> GenerationSettings:
    """The settings with a folder where they name a draft model of the store. Blocks while it is fetched."""
    if not settings.draft or is_path(settings.draft):
        return settings
    package = store.fetch(store.resolve(parse_reference(settings.draft)))
    return msgspec.structs.replace(settings, draft=str(package.path))


def deployment_spec(
    name: str, version: str, package: Package, config: Config, generation: GenerationSettings
) -> DeploymentSpec:
    """What serves `package` on this machine: its own settings, the operator's on top, the cores divided.

    `generation.draft` is a folder or empty.
    """
    manifest = package.manifest
    given = config.models.get(name, ModelSettings())
    cores = usable_cores()
    replicas = fit(replica_settings(name, manifest, config), cores, generates=manifest.runtime == "llm")
    return DeploymentSpec(
        name=name,
        version=version,
        package=str(package.path),
        manifest=manifest,
        batching=override(name, "batching", manifest.batching, given.batching),
        cache=override(name, "cache", manifest.cache, given.cache),
        replicas=replicas,
        generation=generation,
        cores=cores,
        trust_code=config.server.trust_code,
        replica_dollars_per_hour=config.hardware.dollars_per_hour * min(1.0, replicas.threads / cores),
    )
