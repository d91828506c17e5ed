"""What a deployment is made of: a value."""

import msgspec

from foretell.core.settings import BatchingSettings, CacheSettings, GenerationSettings, ReplicaSettings
from foretell.store.manifest import Manifest


class DeploymentSpec(msgspec.Struct, frozen=True):
    """Everything a deployment needs. `package` is the folder its replicas load.

    `generation.draft` is a folder or empty.
    `replicas.threads` is not 0 and `cores` is how many there are to divide (see `fleet.spec`).
    `replica_dollars_per_hour` is the share of the machine's price that one replica occupies.
    """

    name: str
    version: str
    package: str
    manifest: Manifest
    batching: BatchingSettings
    cache: CacheSettings
    replicas: ReplicaSettings
    cores: int
    generation: GenerationSettings = GenerationSettings()
    trust_code: bool = False
    replica_dollars_per_hour: float = 0.0
