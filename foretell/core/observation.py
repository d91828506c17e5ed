"""The record of one finished request: what metrics, the access log, drift and rollouts all read."""

import msgspec
import numpy as np

from foretell.core.tensor import Tensors


class TokenUse(msgspec.Struct, array_like=True, gc=False):
    """What a generation read and said, all choices together.

    `cached_tokens` of the prompt needed no computing. `drafted_tokens` were guessed ahead, `accepted_tokens` of them
    right. `first_token_s`: from arrival to the first token, 0 if none came. `gaps`: seconds between a choice's
    pieces in the order they came, as 32-bit floats of this machine; a piece may hold several tokens.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    first_token_s: float = 0.0
    gaps: bytes = b""

    @property
    def mean_gap_s(self) -> float:
        """The mean of `gaps`, 0 without any."""
        return float(np.frombuffer(self.gaps, np.float32).mean()) if self.gaps else 0.0

    @property
    def longest_gap_s(self) -> float:
        """The longest of `gaps`, 0 without any."""
        return float(np.frombuffer(self.gaps, np.float32).max()) if self.gaps else 0.0


class Observation(msgspec.Struct, array_like=True, gc=False):
    """`at` is Unix seconds when the request arrived; durations are seconds; `outcome` is one of done, failed,
    rejected, expired, cancelled. `cost_dollars` is the busy cost: the request's share of its batch by rows, or of
    the steps by tokens. `rows` and `batch_rows` of a generation are its choices (`batch_rows` 0: it never started).
    `inputs` and `outputs` are present only on sampled requests, `tokens` only on generations.
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
    tokens: TokenUse | None = None
