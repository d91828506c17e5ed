"""The workers of a job on a Ray cluster: actors that each hold the model, read parts, score and write them.

They need the same foretell, and see input, output and package under the same paths. The process of the job keeps the
lease and writes the records, so a job goes from this machine to a cluster and back.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import ray
import ray.exceptions

from foretell.batch.layout import Layout
from foretell.batch.output import OutputFolder
from foretell.batch.part import Part, PartRange
from foretell.batch.protocol import PartKey
from foretell.batch.question import Question
from foretell.batch.scoring import Scorer
from foretell.batch.source import Source
from foretell.batch.spec import JobSpec
from foretell.batch.tuning import Sizes
from foretell.batch.work import Done, Work
from foretell.core.errors import ConfigError, ForetellError, ReplicaCrashed

logger = logging.getLogger(__name__)

TRIES = 3
"""A part is given up when so many workers died of it."""
AT_A_TIME = 2
"""Parts of a worker: one is scored while the other is read or written."""
ROOM_S = 10.0
"""How long a job waits for a CPU of the cluster before it says so."""
CLOSE_S = 10.0
CONNECT_S = 5.0

Open = Callable[[Source, int], contextlib.AbstractAsyncContextManager[Scorer]]
"""Loads the model with so many threads, in the worker's process."""


class Charge(msgspec.Struct, frozen=True):
    """What every worker of a job is given."""

    spec: JobSpec
    attempt: int
    source: Source
    open: Open


class Packed(msgspec.Struct, frozen=True):
    """A part on its way to a worker: only its own rows, in Arrow's stream form."""

    key: PartKey
    start: int
    rows: pa.Buffer


class Worker:
    """The actor. Its calls run in one event loop, several at a time; the first one loads the model."""

    def __init__(self, charge: Charge, threads: int) -> None:
        self._charge = charge
        self._threads = threads
        self._opened = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()
        self._scorer: Scorer | None = None

    async def ready(self) -> None:
        await self._loaded()

    async def do(self, layout: Layout, part: Packed | PartRange, batch_rows: int, again: int) -> Done:
        work = Work(self._charge.spec, self._charge.attempt, self._charge.source, await self._loaded())
        return await work.do(layout, _unpack(part) if isinstance(part, Packed) else part, batch_rows, again)

    async def sizes(self, table: pa.Table, row_bytes: float) -> Sizes:
        return await (await self._loaded()).sizes(table, row_bytes)

    async def close(self) -> None:
        await self._opened.aclose()

    async def _loaded(self) -> Scorer:
        async with self._opening:
            if self._scorer is None:
                opening = self._charge.open(self._charge.source, self._threads)
                self._scorer = await self._opened.enter_async_context(opening)
        return self._scorer


class _Seat(msgspec.Struct):
    """A worker, whether it has a CPU, whether it has begun, and whether it is known to be dead."""

    worker: Any
    placed: bool = False
    began: bool = False
    dead: bool = False


class RayCrew:
    """`workers` of them with `cpus` each; 0: as many as the cluster has room for. `open` and `close` it."""

    def __init__(self, address: str, charge: Charge, question: Question, workers: int, cpus: int) -> None:
        self.question = question
        self._address = address
        self._charge = charge
        self._count = workers
        self._cpus = cpus
        self._output = OutputFolder(Path(charge.spec.writing.folder))
        self._joined = False
        self._seats: list[_Seat] = []
        self._free: asyncio.Queue[_Seat] = asyncio.Queue()
        self._seating: set[asyncio.Task[None]] = set()

    @property
    def width(self) -> int:
        return AT_A_TIME * self._count

    async def open(self) -> None:
        """Join a cluster, or start one on this machine, and start the workers. Raises `ConfigError`."""
        await asyncio.to_thread(self._join)
        cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        self._cpus = max(1, min(self._cpus, max(cpus, default=0)))
        room = sum(count // self._cpus for count in cpus)
        if not room:
            raise ConfigError("the Ray cluster has no CPU for a worker; add a node to it, or run the job without Ray")
        self._count = min(self._count or room, room)
        for _ in range(self._count):
            self._seat()
        self._keep(self._say_if_there_is_no_room())

    def _join(self) -> None:
        if ray.is_initialized():
            return
        if self._address:
            _check_answers(self._address)
        try:
            ray.init(self._address or None, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = f'the Ray cluster at "{self._address}"' if self._address else "a Ray cluster on this machine"
            raise ConfigError(
                f"{where} cannot be used: {_first_line(error)}. Name one that runs: --address HOST:PORT"
            ) from None
        self._joined = True

    def _seat(self) -> None:
        """Start a worker; it is free once it has loaded the model, which it may have to wait for a CPU to do."""
        worker = ray.remote(num_cpus=self._cpus)(Worker).remote(self._charge, self._cpus)
        seat = _Seat(worker)
        self._seats.append(seat)
        self._keep(self._free_when_ready(seat))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._seating.add(task)
        task.add_done_callback(self._seating.discard)

    async def _free_when_ready(self, seat: _Seat) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # whoever asks it next meets the error
            await seat.worker.__ray_ready__.remote()
            seat.placed = True
            await seat.worker.ready.remote()
        seat.began = True
        for _ in range(AT_A_TIME):
            self._free.put_nowait(seat)

    async def _say_if_there_is_no_room(self) -> None:
        await asyncio.sleep(ROOM_S)
        if not any(seat.placed for seat in self._seats):
            logger.warning(
                "no worker has begun: others hold the CPUs of the Ray cluster. The job waits for one; Ctrl-C leaves it"
                " resumable, also without Ray"
            )

    async def close(self) -> None:
        """End the workers, and this process's part in the cluster."""
        for task in self._seating:
            task.cancel()
        closing = [asyncio.ensure_future(_quiet(seat.worker.close.remote())) for seat in self._seats if seat.began]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_S)
        for seat in self._seats:
            ray.kill(seat.worker)
        if self._joined:
            await asyncio.to_thread(ray.shutdown)

    async def sizes(self, table: pa.Table, row_bytes: float) -> Sizes:
        sizes: Sizes = await self._ask(lambda worker, _: worker.sizes.remote(table, row_bytes), "the trial of sizes")
        return sizes

    def parts(
        self, layout: Layout, part_rows: int, rows: Sequence[int | None], done: Mapping[PartKey, object]
    ) -> Iterator[Part | PartRange]:
        return self._charge.source.ranges(layout, part_rows, rows, done)

    async def do(self, layout: Layout, part: Part | PartRange, batch_rows: int) -> Done:
        sent = await asyncio.to_thread(_pack, part) if isinstance(part, Part) else part
        what = f"part {part.key.part} of {self._charge.source.files[part.key.file].path}"
        done: Done = await self._ask(lambda worker, again: worker.do.remote(layout, sent, batch_rows, again), what)
        await asyncio.to_thread(self._check_seen, done)
        return done

    def _check_seen(self, done: Done) -> None:
        """A worker of another machine may have written to a disk of its own."""
        with contextlib.suppress(FileNotFoundError):
            if self._output.size(done.record.names) == done.record.size:
                return
        raise ConfigError(
            f"a worker wrote {done.record.names[0]}, and it is not in {self._output.path} here: on several machines the"
            " output must be on a file system that all of them mount under this path"
        )

    async def _ask(self, call: Callable[[Any, int], Any], what: str) -> Any:
        """What some worker answers; another one where it dies."""
        reason = ""
        for again in range(TRIES):
            seat = await self._free.get()
            while seat.dead:
                seat = await self._free.get()
            try:
                return await call(seat.worker, again)
            except ray.exceptions.RayActorError as error:
                reason = _first_line(error)
                self._give_up(seat)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ForetellError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                raise ReplicaCrashed(
                    f"{what}: the Ray cluster failed: {_first_line(error)}. What was committed stays; resume the job"
                ) from error
            finally:
                if not seat.dead:
                    self._free.put_nowait(seat)
        raise ReplicaCrashed(
            f"{what}: {TRIES} workers died of it, the last one so: {reason}. What was committed stays; give the"
            " workers more memory, or resume without Ray"
        )

    def _give_up(self, seat: _Seat) -> None:
        """Another worker in its place. Where it cannot be reached but lives, it ends."""
        if not seat.dead:  # another part of it may have noticed first
            seat.dead = True
            self._seats.remove(seat)
            ray.kill(seat.worker)
            self._seat()


def _check_answers(address: str) -> None:
    """Ray itself waits for a minute, and then ends the process where nobody answers."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise ConfigError(f'"{address}" is no address of a Ray cluster; name its head: --address HOST:PORT')
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise ConfigError(
            f'no Ray cluster answers at "{address}" ({error.strerror or error}).'
            " Name one that runs: --address HOST:PORT"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


async def _quiet(answer: Any) -> None:
    with contextlib.suppress(ray.exceptions.RayError):
        await answer


def _pack(part: Part) -> Packed:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, part.table.schema) as writer:
        writer.write_table(part.table)
    return Packed(part.key, part.start, sink.getvalue())


def _unpack(part: Packed) -> Part:
    return Part(part.key, part.start, pa.ipc.open_stream(part.rows).read_all())
