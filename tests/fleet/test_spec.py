"""How many replicas, with how many threads: what is asked for is kept, what is left to us divides the cores."""

import pytest

from foretell.core.settings import ReplicaSettings
from foretell.fleet.spec import fit


@pytest.mark.parametrize(
    ("asked", "cores", "count", "threads"),
    [
        (ReplicaSettings(), 2, 1, 2),
        (ReplicaSettings(count=3), 8, 3, 2),
        (ReplicaSettings(count=4), 2, 4, 1),
        (ReplicaSettings(threads=3), 8, 1, 3),
    ],
)
def test_replicas_and_threads(asked, cores, count, threads):
    fitted = fit(asked, cores)
    assert (fitted.count, fitted.threads) == (count, threads)
