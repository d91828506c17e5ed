"""How long to wait before the next try. Pure."""

from collections.abc import Iterator

import msgspec


class Backoff(msgspec.Struct, frozen=True):
    """Waits that double from `first_s` to `most_s`, for ever: what passes is waited out, nothing is thrown away."""

    first_s: float = 0.05
    most_s: float = 5.0

    def waits(self) -> Iterator[float]:
        """Seconds before the second try, the third, and so on.

        >>> from itertools import islice
        >>> list(islice(Backoff(1.0, 3.0).waits(), 4))
        [1.0, 2.0, 3.0, 3.0]
        """
        wait = self.first_s
        while True:
            yield wait
            wait = min(wait * 2, self.most_s)
