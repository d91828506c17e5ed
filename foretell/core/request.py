"""One inference request and its answer, as every entrance, the plane and the scheduler see them."""

import msgspec

from foretell.core.tensor import Tensors


class Request(msgspec.Struct, gc=False):
    """Rows to infer. `inputs` already agree with the signature (`Signature.check` counted `rows`).

    `priority`: 0 is the default; smaller numbers run earlier. `deadline`: monotonic seconds after which the
    answer is worthless, or None. `protocol`: the entrance it came through, for observations.
    `sticky`: the routing key (user, session) that keeps a caller on one version while weights are split.
    `whole`: the rows are a batch as they are; they run at once where a replica has room, joined with no others.
    """

    inputs: Tensors
    rows: int
    id: str = ""
    priority: int = 0
    deadline: float | None = None
    protocol: str = "python"
    sticky: str = ""
    whole: bool = False


class Timing(msgspec.Struct, gc=False):
    """Where a request's time went, in seconds; `batch_rows` is the size of the batch it ran in (0: cached)."""

    queue_s: float = 0.0
    compute_s: float = 0.0
    batch_rows: int = 0
    cached: bool = False


class Response(msgspec.Struct, gc=False):
    """The rows' outputs, in the signature's order, and the version that made them."""

    outputs: Tensors
    model: str
    version: str
    timing: Timing
    id: str = ""
