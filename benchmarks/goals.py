"""What foretell promises in numbers: ratios to reach, by workload, rival and clients."""

from dataclasses import dataclass

CEILING = "in-process onnxruntime"


@dataclass(frozen=True)
class Goal:
    """`ours` at `clients` against `theirs`: rate ratio ≥ `least`, or with `latency` p99 ratio ≤ `least`.

    The ceiling has no clients; its rate of the same round is compared.
    """

    workload: str
    theirs: str
    clients: int
    least: float
    ours: str = "foretell"
    latency: bool = False


GOALS = (
    *(Goal("tiny", "FastAPI", c, least) for c, least in ((1, 0.8), (8, 1.2), (64, 1.8))),
    *(Goal("tiny", "Triton core", c, 1.0) for c in (1, 8, 64)),
    Goal("tiny", "mosec", 64, 0.9),
    Goal("tiny", "MLServer", 64, 5.0),
    Goal("tiny", "LitServe", 64, 8.0),
    *(Goal(w, CEILING, c, 0.9) for w in ("embedder", "image") for c in (8, 64)),
    *(Goal(w, "FastAPI", 8, 1.0, latency=True) for w in ("embedder", "image")),
    Goal("grpc", "MLServer", 64, 3.0),
    Goal("observed", "foretell, unobserved", 64, 0.95),
)

LIMITS = (
    ("footprint cold start", 3.0),
    ("footprint gateway RSS", 150.0),
    ("footprint replica", 150.0),
)
"""Facts whose names start so must stay below: seconds, megabytes."""
