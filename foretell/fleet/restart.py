"""When to start a dead replica again, and when to give up. Pure."""

from collections import deque

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 10.0
LOOP_CRASHES = 5
LOOP_WINDOW_S = 60.0


class RestartPolicy:
    """Exponential backoff over failures to start; a crash after a healthy start restarts at once.

    A replica that cannot start `LOOP_CRASHES` times in a row within `LOOP_WINDOW_S` (or that crashes before it
    answered anything) is in a crash loop: the version is unhealthy, and restarts go on at the longest delay.
    """

    def __init__(self) -> None:
        self._failures: deque[float] = deque(maxlen=LOOP_CRASHES)
        self._delay = 0.0

    @property
    def looping(self) -> bool:
        full = len(self._failures) == LOOP_CRASHES
        return full and self._failures[-1] - self._failures[0] <= LOOP_WINDOW_S

    def crashed(self, now: float, *, answered: bool) -> float:
        """Record a death; returns the seconds to wait before the next start. `answered`: it had served."""
        if answered:
            self.answered()
            return 0.0
        self._failures.append(now)
        self._delay = min(LONGEST_DELAY_S, max(FIRST_DELAY_S, self._delay * 2.0))
        return LONGEST_DELAY_S if self.looping else self._delay

    def answered(self) -> None:
        """A replica answered a batch: whatever went wrong before is over."""
        self._failures.clear()
        self._delay = 0.0
