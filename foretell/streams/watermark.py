"""How far event time has come in each partition: what is late, and what is so far ahead that it is not believed. Pure.

The watermark of a partition is its newest event time less `delay`, the disorder that is expected (Flink's bounded
out-of-orderness): no event older than it is expected any more. It is taken before each event, event by event, so that
what is late does not depend on how the stream was cut into micro-batches. Lateness and expiry go by the partition's
own watermark, because a key's state lives in its partition; the smallest of all is that of the whole stream.

A clock that jumps forward (one device in the year 2099) would make everything after it late. So an event more than
`jump` ahead of the newest one moves the clock only when `confirm` events in a row agree with it; until then such
events are "ahead": counted, handed out, in no window. After a real silence longer than `jump` that costs the first
`confirm` - 1 events their place in the windows. The first events of a stream are kept, and nothing is late until
`confirm` of them agree. A clock that jumps back only makes its own events late.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from foretell.core.errors import ConfigError
from foretell.streams.times import Times, duration

NEVER = -(2**62)
"""The watermark before any is known: later than nothing."""


class Clock(msgspec.Struct, frozen=True, array_like=True):
    """One partition's progress: its newest believed event time, and how many in a row say that it is `claimed`."""

    newest: int = NEVER
    claimed: int = 0
    agreeing: int = 0


class Marks(msgspec.Struct, frozen=True):
    """Of each event of a micro-batch: the watermark before it, and whether it is too far ahead to be believed."""

    before: Times
    ahead: NDArray[np.bool_]
    after: Clock

    def of(self, events: Sequence[int]) -> "Marks":
        """Those of some of the events, by their places."""
        return Marks(self.before[events], self.ahead[events], self.after)


class Watermark:
    """The rule by which event time advances; see the module. `confirm=1` believes every event."""

    def __init__(self, delay: str = "1m", jump: str = "1d", confirm: int = 3) -> None:
        self.delay_ms = duration(delay, "delay")
        self.jump_ms = duration(jump, "jump")
        self.confirm = confirm
        if self.delay_ms < 0 or self.jump_ms <= 0 or confirm < 1:
            raise ConfigError("a watermark needs a delay of 0 or more, a jump above 0 and confirm of 1 or more")

    def of(self, clock: Clock) -> int:
        """The watermark after what `clock` has seen."""
        return clock.newest - self.delay_ms if clock.newest != NEVER else NEVER

    def advance(self, clock: Clock, times: Times) -> Marks:
        """Take in the times of the events that came, in their order."""
        if clock.newest == NEVER or not len(times):
            return self._one_by_one(clock, times)
        newest = np.maximum.accumulate(np.concatenate(([clock.newest], times)))
        if (self.confirm > 1) and (times > newest[:-1] + self.jump_ms).any():
            return self._one_by_one(clock, times)
        after = Clock(int(newest[-1]))
        return Marks(newest[:-1] - self.delay_ms, np.zeros(len(times), bool), after)

    def _one_by_one(self, clock: Clock, times: Times) -> Marks:
        before = np.empty(len(times), np.int64)
        ahead = np.zeros(len(times), bool)
        for at, time in enumerate(times.tolist()):
            before[at] = self.of(clock)
            start = clock.newest == NEVER
            if not start and (time <= clock.newest + self.jump_ms or self.confirm == 1):
                clock = Clock(max(clock.newest, time))
                continue
            agrees = clock.agreeing > 0 and abs(time - clock.claimed) <= self.jump_ms
            claimed = max(time, clock.claimed) if agrees else time
            agreeing = clock.agreeing + 1 if agrees else 1
            if agreeing >= self.confirm:
                clock = Clock(claimed)
            else:
                clock = Clock(clock.newest, claimed, agreeing)
                ahead[at] = not start
        return Marks(before, ahead, clock)
