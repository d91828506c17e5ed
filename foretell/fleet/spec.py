"""What a replica is told when it starts, and how many of them fit a machine. Pure."""

import msgspec

from foretell.core.settings import ReplicaSettings


class WorkerSpec(msgspec.Struct, frozen=True):
    """`package` is the folder to load; `replicas` has no zeros left (see `fit`)."""

    package: str
    replicas: ReplicaSettings
    trust_code: bool
    max_batch_size: int


def fit(settings: ReplicaSettings, cores: int) -> ReplicaSettings:
    """Fill in what was left to us: one replica that uses every core, or several that divide them.

    One is measured to finish as many rows as several on two cores, in half the memory, and answers a lone request
    soonest. More pay off for models that hold the GIL or do not scale over threads, which their owner knows.
    """
    count = settings.count or 1
    threads = settings.threads or max(1, cores // count)
    return msgspec.structs.replace(settings, count=count, threads=threads)
