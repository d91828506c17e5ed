"""The record of one finished request: what metrics, the access log, drift and rollouts all read."""

import msgspec

from foretell.core.tensor import Tensors


class Observation(msgspec.Struct, array_like=True, gc=False):
    """`at` is Unix seconds when the request arrived; durations are seconds; `outcome` is one of done, failed,
    rejected, expired, cancelled. `cost_dollars` is the busy cost: the request's share of its batch by rows.
    `inputs` and `outputs` are present only on sampled requests.
    """

    model: str
    version: str
    outcome: str
    at: float
    total_s: float
    queue_s: float
    compute_s: float
    rows: int
    batch_rows: int
    cached: bool
    protocol: str
    request_id: str
    cost_dollars: float = 0.0
    error: str = ""
    inputs: Tensors | None = None
    outputs: Tensors | None = None
