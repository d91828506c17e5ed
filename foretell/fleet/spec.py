"""What a replica is told when it starts, and how many of them fit a machine. Pure."""

from collections.abc import Sequence

import msgspec

from foretell.core.settings import GenerationSettings, ReplicaSettings


class WorkerSpec(msgspec.Struct, frozen=True):
    """`package` is the folder to load, `generation.draft` another or ""; `replicas.threads` is not 0 (see `fit`)."""

    package: str
    replicas: ReplicaSettings
    trust_code: bool
    max_batch_size: int
    generation: GenerationSettings = GenerationSettings()


MOST_REPLICAS = 4
"""Replicas that are started without being asked for: each holds the whole model in memory."""

HEAVY_S = 0.002
"""A model whose rows take longer than this even in a batch keeps a core busy; a lighter one waits for the gateway."""


def fit(settings: ReplicaSettings, cores: int, *, generates: bool = False) -> ReplicaSettings:
    """Fill in the threads that were left to us: the cores, divided by the replicas there will be at most.

    `count` 0 stays: whether a model is heavy enough for several replicas shows when the first has warmed up. One
    that generates has one replica with all cores: its steps run many requests together, and a second replica would
    read the same weights again for half of them.
    """
    if generates and not settings.count:
        settings = msgspec.structs.replace(settings, count=1)
    threads = settings.threads or max(1, cores // (settings.count or min(cores, MOST_REPLICAS)))
    return msgspec.structs.replace(settings, threads=threads)


def replicas_for(settings: ReplicaSettings, warmup: Sequence[tuple[int, float]], cores: int) -> int:
    """How many replicas to hold, given the (rows, seconds) of the first one's warm-up batches.

    Several replicas with a share of the cores each finish more rows than one with all cores, since threads inside
    a batch wait for each other; a light model gains nothing, as its one replica already waits for requests.
    """
    if settings.count:
        return settings.count
    heavy = min((seconds / rows for rows, seconds in warmup), default=0.0) > HEAVY_S
    return max(1, min(MOST_REPLICAS, cores // settings.threads)) if heavy else 1
