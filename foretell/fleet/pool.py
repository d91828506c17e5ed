"""Keeps a number of replicas of one version alive: starts, warms, restarts, replaces, drains. Mechanism only.

How many there should be is told (`start`, `scale`); what runs on them is their lanes' business.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine

from foretell.core.errors import ForetellError, NotReady, ReplicaCrashed
from foretell.fleet.launcher import Launcher
from foretell.fleet.replica import Lane, Replica
from foretell.fleet.restart import RestartPolicy
from foretell.fleet.spec import WorkerSpec
from foretell.fleet.wire import Ready

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.5


class Pool:
    """`replicas` are the ready ones. `lane` makes the lane of a new replica; `unhealthy` is called with the reason
    when no replica stays up.

    A replica that retires or has died is not ready any more, but stays in `_leaving` until its process has ended.
    """

    def __init__(
        self,
        name: str,
        spec: WorkerSpec,
        launch: Launcher,
        lane: Callable[[Replica], Lane],
        unhealthy: Callable[[ForetellError], None],
    ) -> None:
        self.name = name
        self.replicas: list[Replica] = []
        self.restarts = 0
        self.replica_seconds = 0.0
        self._spec = spec
        self._launch = launch
        self._lane = lane
        self._unhealthy = unhealthy
        self._policy = RestartPolicy()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[Replica] = set()
        self._wanted = 0
        self._pending = 0
        self._closing = False
        self._watch: asyncio.TimerHandle | None = None

    async def start(self, count: Callable[[Ready], int]) -> None:
        """Start a replica and, once it is warm, as many more as `count` says of it; return when the first is ready.

        Raises what loading it raised.
        """
        self._pending += 1
        try:
            ready = await self._start_one()
        finally:
            self._pending -= 1
        self._watch = asyncio.get_running_loop().call_later(WATCH_INTERVAL_S, self._look)
        self.scale(count(ready))

    def scale(self, count: int) -> None:
        """Start or retire replicas until there are `count`."""
        self._wanted = count
        for replica in self.replicas[count:]:
            self._retire(replica)
        self._fill(0.0)

    def total_replica_seconds(self) -> float:
        """Time that replicas were up, busy or idle, added over all of them."""
        now = time.monotonic()
        return self.replica_seconds + sum(now - replica.started_at for replica in self.replicas)

    def states(self) -> dict[str, int]:
        """Replicas by state, for metrics."""
        return {"ready": len(self.replicas), "starting": self._pending}

    def pids(self) -> list[int]:
        return [replica.process.pid for replica in self.replicas]

    async def close(self) -> None:
        """Hang up on every replica and wait for their processes to end; those that won't are killed."""
        self._closing = True
        if self._watch:
            self._watch.cancel()
        for task in list(self._tasks):
            task.cancel()
        replicas = [*self.replicas, *self._leaving]
        for replica in replicas:
            self._leave(replica)
            replica.close()
        await asyncio.gather(*(replica.ended.wait() for replica in replicas), *self._tasks, return_exceptions=True)

    # Replica events

    def worked(self, replica: Replica) -> None:
        # Only a replica's first answer clears the record: one that works says nothing about another that cannot start.
        if not replica.answered:
            replica.answered = True
            self._policy.answered()
        limit = self._spec.replicas.memory_limit_mb * 2**20
        if limit and replica.rss > limit and replica in self.replicas:
            self._replace(replica)

    def gone(self, replica: Replica) -> None:
        """Its connection broke: nothing more may be sent there. How it ended is known a little later (`lost`)."""
        self._leave(replica)

    def lost(self, replica: Replica) -> None:
        self._leaving.discard(replica)
        log.warning("%s: %s", self.name, replica.reason)
        replica.lane.lost(replica.reason)
        if self._closing:
            return
        self.restarts += 1
        delay = self._policy.crashed(time.monotonic(), answered=replica.answered)
        if not self.replicas and self._policy.looping:
            self._give_up(replica.reason)
        self._fill(delay)

    # Starting and ending

    def _fill(self, delay: float) -> None:
        """Start what is missing, after `delay` seconds."""
        for _ in range(self._wanted - len(self.replicas) - self._pending):
            self._keep(self._start(delay))

    async def _start_one(self) -> Ready:
        try:
            process = self._launch(self._spec)
        except OSError as error:
            raise ReplicaCrashed(f"no process could be started: {error}") from None
        replica = Replica(process, self, self._lane)
        try:
            ready = await replica.connect(self._spec.replicas.start_timeout_s)
        except BaseException:
            replica.kill("the start was abandoned")
            replica.close()
            raise
        log.info("%s: replica %d ready in %.2f s", self.name, replica.process.pid, ready.load_s)
        self.replicas.append(replica)
        replica.lane.join(ready)
        return ready

    async def _start(self, delay: float, instead_of: Replica | None = None) -> None:
        """Start one more replica, trying again until it works; it may take the place of another."""
        try:
            while True:
                await asyncio.sleep(delay)
                try:
                    await self._start_one()
                    break
                except ForetellError as error:
                    delay = self._policy.crashed(time.monotonic(), answered=False)
                    log.warning("%s: a replica did not start (%s); next try in %.1f s", self.name, error, delay)
                    if not self.replicas and self._policy.looping:
                        self._give_up(str(error))
        finally:
            self._pending -= 1
        if instead_of is not None:
            self._retire(instead_of)
        for replica in self.replicas[self._wanted :]:
            self._retire(replica)

    def _give_up(self, reason: str) -> None:
        log.error("%s: unhealthy, replicas crash again and again: %s", self.name, reason)
        self._unhealthy(NotReady(f"{self.name} is unhealthy, its replicas crash again and again: {reason}"))

    def _replace(self, replica: Replica) -> None:
        """Start a fresh replica, then retire this one. Until then it goes on working."""
        log.warning(
            "%s: replica %d holds %d MiB, over replicas.memory_limit_mb; replacing it",
            self.name,
            replica.process.pid,
            replica.rss >> 20,
        )
        replica.rss = 0
        self._keep(self._start(0.0, instead_of=replica))

    def _retire(self, replica: Replica) -> None:
        if replica in self.replicas:
            self._leave(replica)
            replica.retire()

    def _leave(self, replica: Replica) -> None:
        if replica in self.replicas:
            self.replicas.remove(replica)
            replica.lane.leave()
            self.replica_seconds += time.monotonic() - replica.started_at
        self._leaving.add(replica)

    def retired(self, replica: Replica) -> None:
        """It finished what it held, and its process has ended."""
        self._leaving.discard(replica)

    def _look(self) -> None:
        """The watchdog: a batch or step that runs too long means the replica hangs."""
        limit = self._spec.replicas.hang_timeout_s
        now = time.monotonic()
        for replica in (*self.replicas, *self._leaving):
            since = replica.lane.busy_since
            if since is not None and now - since > limit:
                replica.kill(f"the replica hung: a batch or step ran longer than {limit:g} s (replicas.hang_timeout_s)")
        self._watch = asyncio.get_running_loop().call_later(WATCH_INTERVAL_S, self._look)

    def _keep(self, start: Coroutine[None, None, None]) -> None:
        self._pending += 1
        task = asyncio.get_running_loop().create_task(start)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
