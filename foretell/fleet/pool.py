"""Keeps a number of replicas of one version alive: starts, warms, restarts, replaces, drains. Mechanism only.

How many there should be is told (`start`, `scale`); what runs on them is the dispatcher's business.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine

from foretell.core.errors import ForetellError, NotReady
from foretell.core.tensor import Tensors
from foretell.fleet.launcher import Launcher
from foretell.fleet.replica import Replica
from foretell.fleet.restart import RestartPolicy
from foretell.fleet.spec import WorkerSpec
from foretell.fleet.wire import Ready
from foretell.scheduling.dispatcher import Batch, Dispatcher

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.5


class Pool:
    """`lanes` are the ready replicas, shared with the dispatcher, which must be set before `start`."""

    def __init__(self, name: str, spec: WorkerSpec, launch: Launcher) -> None:
        self.name = name
        self.lanes: list[Replica] = []
        self.dispatcher: Dispatcher
        self.executions: Callable[[int, float], None] = lambda rows, compute_s: None
        self.restarts = 0
        self.replica_seconds = 0.0
        self._spec = spec
        self._launch = launch
        self._policy = RestartPolicy()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted = 0
        self._starting = 0
        self._closing = False
        self._watch: asyncio.TimerHandle | None = None

    async def start(self, count: Callable[[Ready], int]) -> None:
        """Start a replica and, once it is warm, as many more as `count` says of it; return when the first is ready.

        Raises what loading it raised.
        """
        ready = await self._start_one()
        self._watch = asyncio.get_running_loop().call_later(WATCH_INTERVAL_S, self._look)
        self.scale(count(ready))

    def scale(self, count: int) -> None:
        """Start or retire replicas until there are `count`."""
        self._wanted = count
        for _ in range(count - len(self.lanes) - self._starting):
            self._keep(self._start_again(0.0))
        for replica in self.lanes[count:]:
            self._retire(replica)

    def total_replica_seconds(self) -> float:
        """Time that replicas were up, busy or idle, added over all of them."""
        now = time.monotonic()
        return self.replica_seconds + sum(now - replica.started_at for replica in self.lanes)

    def states(self) -> dict[str, int]:
        """Replicas by state, for metrics."""
        return {"ready": len(self.lanes), "starting": self._starting}

    def pids(self) -> list[int]:
        return [replica.process.pid for replica in self.lanes]

    async def close(self) -> None:
        """Hang up on every replica and wait for their processes to end; those that won't are killed."""
        self._closing = True
        if self._watch:
            self._watch.cancel()
        for task in list(self._tasks):
            task.cancel()
        replicas, self.lanes[:] = list(self.lanes), []
        for replica in replicas:
            replica.close()
        await asyncio.gather(*(replica.ended.wait() for replica in replicas), *self._tasks, return_exceptions=True)

    # Replica events

    def done(self, replica: Replica, batch: Batch, outputs: Tensors, compute_s: float, took_s: float) -> None:
        self._policy.answered()
        self.executions(batch.rows, compute_s)
        self.dispatcher.finished(batch, outputs, compute_s, took_s)
        limit = self._spec.replicas.memory_limit_mb * 2**20
        if limit and replica.rss > limit and replica in self.lanes:
            self._replace(replica)

    def failed(self, replica: Replica, batch: Batch, error: ForetellError) -> None:
        self.dispatcher.failed(batch, error)

    def lost(self, replica: Replica) -> None:
        self._forget(replica)
        held = list(replica.batches)
        log.warning("%s: %s; %d batches in hand", self.name, replica.reason, len(held))
        delay = self._policy.crashed(time.monotonic(), answered=replica.answered)
        if not self._closing:
            self._go_on(delay, replica.reason)
        self.dispatcher.lost(held[0] if held else None, held[1:], replica.reason)

    # Starting and ending

    async def _start_one(self) -> Ready:
        self._starting += 1
        replica = Replica(self._launch(self._spec), self)
        try:
            ready = await replica.connect(self._spec.replicas.start_timeout_s)
        except BaseException:
            replica.kill("the start was abandoned")
            replica.close()
            raise
        finally:
            self._starting -= 1
        log.info("%s: replica %d ready in %.2f s", self.name, replica.process.pid, ready.load_s)
        for rows, seconds in ready.warmup:
            self.dispatcher.service.observe(rows, seconds)
        self.lanes.append(replica)
        if isinstance(self.dispatcher.unavailable, NotReady) and not self._closing:
            self.dispatcher.unavailable = None
        self.dispatcher.pump()
        return ready

    async def _start_again(self, delay: float) -> None:
        while True:
            await asyncio.sleep(delay)
            try:
                await self._start_one()
                return
            except ForetellError as error:
                delay = self._policy.crashed(time.monotonic(), answered=False)
                log.warning("%s: a replica did not start (%s); next try in %.1f s", self.name, error, delay)
                if not self.lanes and self._policy.looping:
                    self._unhealthy(str(error))

    def _go_on(self, delay: float, reason: str) -> None:
        self.restarts += 1
        if not self.lanes and self._policy.looping:
            self._unhealthy(reason)
        if len(self.lanes) + self._starting < self._wanted:
            self._keep(self._start_again(delay))

    def _unhealthy(self, reason: str) -> None:
        log.error("%s: unhealthy, replicas crash again and again: %s", self.name, reason)
        self.dispatcher.stop(NotReady(f"{self.name} is unhealthy, its replicas crash again and again: {reason}"))

    def _replace(self, replica: Replica) -> None:
        """Start a fresh replica, then retire this one. Until then it goes on working."""
        log.warning(
            "%s: replica %d holds %d MiB, over replicas.memory_limit_mb; replacing it",
            self.name,
            replica.process.pid,
            replica.rss >> 20,
        )
        replica.rss = 0
        self._keep(self._start_then_retire(replica))

    async def _start_then_retire(self, replica: Replica) -> None:
        await self._start_again(0.0)
        self._retire(replica)

    def _retire(self, replica: Replica) -> None:
        if replica in self.lanes:
            self._forget(replica)
            self._keep(self._finish(replica))

    async def _finish(self, replica: Replica) -> None:
        while replica.batches and not replica.ended.is_set():
            await asyncio.sleep(0.01)
        replica.close()
        await replica.ended.wait()

    def _forget(self, replica: Replica) -> None:
        if replica in self.lanes:
            self.lanes.remove(replica)
            self.replica_seconds += time.monotonic() - replica.started_at

    def _look(self) -> None:
        """The watchdog: a batch that runs too long means the replica hangs."""
        limit = self._spec.replicas.hang_timeout_s
        now = time.monotonic()
        for replica in self.lanes:
            if replica.batches and now - replica.running_since > limit:
                replica.kill(f"the replica hung: a batch ran longer than {limit:g} s (replicas.hang_timeout_s)")
        self._watch = asyncio.get_running_loop().call_later(WATCH_INTERVAL_S, self._look)

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
