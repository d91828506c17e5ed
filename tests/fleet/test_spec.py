"""How many replicas, with how many threads: what is asked for is kept, what is left to us follows the model."""

import pytest

from foretell.core.settings import ReplicaSettings
from foretell.fleet.spec import fit, replicas_for

LIGHT, HEAVY = [(1, 0.0001), (64, 0.0004)], [(1, 0.013), (64, 0.6)]


@pytest.mark.parametrize(
    ("asked", "cores", "warmup", "count", "threads"),
    [
        (ReplicaSettings(), 2, LIGHT, 1, 1),
        (ReplicaSettings(), 2, HEAVY, 2, 1),
        (ReplicaSettings(), 16, HEAVY, 4, 4),
        (ReplicaSettings(), 1, HEAVY, 1, 1),
        (ReplicaSettings(count=1), 8, HEAVY, 1, 8),
        (ReplicaSettings(count=3), 8, LIGHT, 3, 2),
        (ReplicaSettings(threads=8), 8, HEAVY, 1, 8),
        (ReplicaSettings(), 2, [], 1, 1),
    ],
)
def test_replicas_and_threads(asked, cores, warmup, count, threads):
    fitted = fit(asked, cores)
    assert (replicas_for(fitted, warmup, cores), fitted.threads) == (count, threads)
