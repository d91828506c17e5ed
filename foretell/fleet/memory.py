"""How much memory this process holds."""

import os
import time

INTERVAL_S = 1.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


class ResidentBytes:
    """Resident bytes of this process, read at most once in `INTERVAL_S`."""

    def __init__(self) -> None:
        self._next = 0.0

    def now_and_then(self) -> int:
        """The bytes, or 0 where they were read only just now or cannot be."""
        now = time.monotonic()
        if now < self._next:
            return 0
        self._next = now + INTERVAL_S
        try:
            with open("/proc/self/statm", "rb") as statm:
                return int(statm.read().split()[1]) * _PAGE
        except OSError:
            return 0
