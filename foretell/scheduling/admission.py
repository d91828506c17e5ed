"""The door: admit a request, or say at once how long to stay away. Pure."""

from typing import Protocol

from foretell.core.errors import DeadlineExceeded, InvalidInput, Overloaded
from foretell.core.settings import BatchingSettings

MIN_RETRY_S = 0.05


class Asking(Protocol):
    """What admission reads of a request: rows (a generation's sequences), and the deadline in monotonic seconds."""

    @property
    def rows(self) -> int: ...
    @property
    def deadline(self) -> float | None: ...


def admit(request: Asking, settings: BatchingSettings, *, queued_rows: int, wait_s: float, now: float) -> None:
    """Return if the request may wait; `wait_s` is the estimated time until its batch would start.

    Raises `Overloaded` when the queue has no room or the estimated wait outlasts the deadline,
    `DeadlineExceeded` when the deadline has already passed, `InvalidInput` when no batch could ever hold it.
    """
    if request.rows > settings.max_queue_rows:
        raise InvalidInput(
            f"the request has {request.rows} rows, the queue holds {settings.max_queue_rows}; split it or raise"
            " batching.max_queue_rows"
        )
    if queued_rows + request.rows > settings.max_queue_rows:
        raise Overloaded(
            f"{queued_rows} rows wait already and the queue holds {settings.max_queue_rows};"
            f" retry in {max(wait_s, MIN_RETRY_S):.2f} s",
            max(wait_s, MIN_RETRY_S),
        )
    if request.deadline is None:
        return
    left = request.deadline - now
    if left <= 0:
        raise DeadlineExceeded("the deadline had passed when the request arrived; raise its timeout")
    if wait_s > left:
        raise Overloaded(
            f"the estimated wait is {wait_s:.3f} s and the deadline is in {left:.3f} s; retry later or allow more time",
            max(wait_s - left, MIN_RETRY_S),
        )
