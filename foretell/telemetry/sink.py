"""The bounded buffer between requests and whatever watches them. Owns the waiting observations, the drops and
the threads that drain them; doesn't know what a consumer does with a batch.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat, starmap
from typing import Generic, Protocol, TypeVar

from foretell.core.clock import Clock
from foretell.core.observation import Observation

logger = logging.getLogger(__name__)

CHUNK = 256
"""Observations folded at a time. A fold of this size holds the interpreter lock for about 0.2 ms; between folds
the draining thread lets go of it, so the event loop's tail latency doesn't see the drain."""

_BREATH_S = 0.0002
_SCRAPE_PATIENCE_S = 0.1
_COMPLAIN_EVERY_S = 60.0


class Consumer(Protocol):
    """Reads drained batches, one call at a time. `tick` comes about four times a second, for work by age.

    A consumer given to `Sink` directly must stay in memory; one that touches a disk or a pipe goes into a
    `Detached` first. Whatever it raises is logged and counted, and costs nobody but itself. `dropped` is how
    many observations it was given and could not keep.
    """

    @property
    def dropped(self) -> int: ...

    def consume(self, batch: Sequence[Observation]) -> None: ...

    def tick(self) -> None: ...

    def close(self) -> None: ...


class Sink:
    """Takes one observation per request and hands them on in batches.

    record: the only call on the hot path. drain: hands over everything recorded before the call. A thread
    drains every `interval_s` seconds between `start` and `close`. Where `capacity` observations wait, more are
    dropped and counted, exactly, in `dropped`.
    """

    def __init__(
        self,
        capacity: int,
        consumers: Sequence[Consumer],
        clock: Clock = time.monotonic,
        interval_s: float = 0.25,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._capacity = capacity
        self._guards = [Guard(consumer, clock) for consumer in consumers]
        self._interval_s = interval_s
        self._sleep = sleep
        self._waiting: deque[Observation] = deque()
        self._dropped = 0
        self._drop_lock = threading.Lock()
        self._drain_lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def record(self, observation: Observation) -> None:
        """Keep `observation` for the next drain, or count it as dropped. Never blocks, never raises."""
        if len(self._waiting) < self._capacity:
            self._waiting.append(observation)
        else:
            with self._drop_lock:
                self._dropped += 1

    @property
    def waiting(self) -> int:
        """Observations recorded and not yet handed over."""
        return len(self._waiting)

    @property
    def dropped(self) -> int:
        """Observations that found the sink full, since it was made."""
        return self._dropped

    @property
    def failures(self) -> Mapping[str, int]:
        """How often each consumer raised, by its class name."""
        return {guard.name: guard.failures for guard in self._guards}

    def drain(self, patience_s: float = _SCRAPE_PATIENCE_S) -> int:
        """Hand over everything recorded before this call; returns how many observations went.

        Safe from any thread. If another drain holds on for more than `patience_s` seconds (a consumer hangs),
        it gives up and what remains stays recorded: a scrape must answer although a consumer doesn't.
        """
        return self._hand_over(len(self._waiting), patience_s, pause=False)

    def start(self) -> None:
        """Start the draining thread. Idempotent until `close`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._pump, name="foretell-sink", daemon=True)
            self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop the thread, hand over the rest and close the consumers; a hanging one is left after `timeout_s`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                logger.error("a consumer of observations hangs; %d observations are given up", self.waiting)
                return
        self.drain(timeout_s)
        for guard in self._guards:
            guard.call(guard.consumer.close)

    def _pump(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._hand_over(len(self._waiting), patience_s=-1, pause=True)
            for guard in self._guards:
                guard.call(guard.consumer.tick)

    def _hand_over(self, count: int, patience_s: float, pause: bool) -> int:
        done = 0
        while done < count:
            if not self._drain_lock.acquire(timeout=patience_s):
                break
            try:
                # Another thread may have drained meanwhile, so what is left is looked up under the lock.
                size = min(CHUNK, count - done, len(self._waiting))
                batch = list(starmap(self._waiting.popleft, repeat((), size)))
                for guard in self._guards if batch else ():
                    guard.consume(batch)
            finally:
                self._drain_lock.release()
            if not batch:
                break
            done += size
            if pause:
                # sleep(0) may take the interpreter lock back before the loop's thread has woken.
                self._sleep(_BREATH_S)
        return done


class Detached:
    """A consumer that runs another in a thread of its own, so that a slow disk or a full pipe stops nobody.

    Batches that would make more than `capacity` observations wait are dropped and counted. `start` starts the
    thread; `close` waits for what is queued, at most `timeout_s` seconds, then closes the inner consumer.
    """

    def __init__(
        self, consumer: Consumer, capacity: int = 65_536, clock: Clock = time.monotonic, timeout_s: float = 5.0
    ) -> None:
        self._guard = Guard(consumer, clock)
        self._capacity = capacity
        self._timeout_s = timeout_s
        self._batches: deque[Sequence[Observation]] = deque()
        self._waiting = 0
        self._dropped = 0
        self._tick_due = False
        self._closing = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """The inner consumer's class name."""
        return self._guard.name

    @property
    def overflow(self) -> int:
        """Observations the inner consumer never saw."""
        return self._dropped

    @property
    def dropped(self) -> int:
        """Observations the inner consumer never saw, or could not keep."""
        return self._dropped + self._guard.consumer.dropped

    @property
    def failures(self) -> int:
        """How often the inner consumer raised."""
        return self._guard.failures

    def start(self) -> None:
        """Start the thread. Idempotent."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"foretell-{self._guard.name.lower()}", daemon=True)
            self._thread.start()

    def consume(self, batch: Sequence[Observation]) -> None:
        """Queue `batch`, or count it as dropped. Never blocks on the inner consumer."""
        with self._wake:
            if self._waiting + len(batch) > self._capacity:
                self._dropped += len(batch)
                return
            self._waiting += len(batch)
            self._batches.append(batch)
            self._wake.notify()

    def tick(self) -> None:
        with self._wake:
            self._tick_due = True
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is None:
            self._work()
            return
        self._thread.join(self._timeout_s)
        if self._thread.is_alive():
            logger.error("%s hangs; %d observations are given up", self._guard.name, self._waiting)

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._batches or self._tick_due or self._closing):
                    self._wake.wait()
                batch = self._batches.popleft() if self._batches else ()
                tick, self._tick_due = self._tick_due and not batch, self._tick_due and bool(batch)
            if batch:
                self._guard.consume(batch)
                with self._wake:
                    self._waiting -= len(batch)
                time.sleep(0 if self._closing else _BREATH_S)
            elif tick:
                self._guard.call(self._guard.consumer.tick)
            else:
                self._guard.call(self._guard.consumer.close)
                return


C = TypeVar("C", bound=Consumer)


class Guard(Generic[C]):
    """Calls one consumer; counts what it raises and logs it at most once a minute."""

    def __init__(self, consumer: C, clock: Clock) -> None:
        self.consumer = consumer
        self.name = type(consumer).__name__
        self.failures = 0
        self._clock = clock
        self._quiet_until = -1e18

    def consume(self, batch: Sequence[Observation]) -> None:
        self.call(lambda: self.consumer.consume(batch))

    def call(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception:
            self.failures += 1
            now = self._clock()
            if now >= self._quiet_until:
                self._quiet_until = now + _COMPLAIN_EVERY_S
                logger.exception("%s failed on observations (%d times so far)", self.name, self.failures)
