"""What the plane tells about its models: values for metadata, repository and statistics answers."""

import msgspec

from foretell.core.tensor import Signature


class ModelInfo(msgspec.Struct, frozen=True):
    """One served version. `versions` are all served versions of the name; `tags` says what else it can do
    ("embeddings": maps text to one vector a row).
    """

    name: str
    version: str
    versions: tuple[str, ...]
    runtime: str
    signature: Signature
    max_batch_size: int
    description: str = ""
    tags: tuple[str, ...] = ()


class IndexEntry(msgspec.Struct, frozen=True):
    """A line of the repository index; `state` is READY, LOADING or UNAVAILABLE, `reason` says why not ready."""

    name: str
    version: str
    state: str
    reason: str = ""


class BatchStatistics(msgspec.Struct):
    """How often batches of `rows` rows ran, and for how long in all."""

    rows: int
    count: int = 0
    compute_s: float = 0.0


class VersionStatistics(msgspec.Struct):
    """Totals of one version since it was loaded. Sums of seconds run over successful requests."""

    name: str
    version: str
    inferences: int = 0
    executions: int = 0
    succeeded: int = 0
    failed: int = 0
    rejected: int = 0
    cache_hits: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    total_s: float = 0.0
    last_inference_ms: int = 0
    batches: list[BatchStatistics] = msgspec.field(default_factory=list)
