"""One version in service: its replicas, its statistics, and the side that answers for it."""

import asyncio
import time
from collections.abc import Awaitable

import msgspec

from foretell.core.errors import InvalidInput, NotReady
from foretell.core.generation import GenerateRequest, Load
from foretell.core.request import Request
from foretell.core.tensor import Signature
from foretell.fleet.launcher import Launcher
from foretell.fleet.pool import Pool
from foretell.fleet.spec import WorkerSpec, replicas_for
from foretell.fleet.wire import Ready
from foretell.plane.generating import Generating, Generation
from foretell.plane.inferring import Inferring
from foretell.plane.info import BatchStatistics, ModelInfo, VersionStatistics
from foretell.plane.spec import DeploymentSpec
from foretell.scheduling.queue import Answer


class Deployment:
    """Answers requests for one version. `start` before `infer` or `generate`; `drain` at the end."""

    def __init__(self, spec: DeploymentSpec, launch: Launcher) -> None:
        self.spec = spec
        self.signature: Signature = spec.manifest.signature
        self.statistics = VersionStatistics(spec.name, spec.version)
        self.dollars_per_second = spec.replica_dollars_per_hour / 3600.0
        self._batches: dict[int, BatchStatistics] = {}
        side = Generating if spec.manifest.runtime == "llm" else Inferring
        self._side: Generating | Inferring = side(spec, self._executed)
        worker = WorkerSpec(spec.package, spec.replicas, spec.trust_code, self._side.max_batch_size, spec.generation)
        self.pool = Pool(f"{spec.name}@{spec.version}", worker, launch, self._side.lane, self._side.scheduler.stop)

    async def start(self) -> None:
        """Load and warm up; returns when the first replica can answer. Raises why it cannot."""
        try:
            await self.pool.start(self._count)
        except BaseException:
            await self.pool.close()
            raise

    def _count(self, ready: Ready) -> int:
        return replicas_for(self.spec.replicas, ready.warmup, self.spec.cores)

    @property
    def ready(self) -> bool:
        return bool(self.pool.replicas) and self._side.scheduler.unavailable is None

    @property
    def reason(self) -> str:
        """Why it is not ready."""
        unavailable = self._side.scheduler.unavailable
        if unavailable is not None:
            return unavailable.message
        return "" if self.pool.replicas else "its replicas are starting"

    @property
    def queued(self) -> int:
        """Rows (or sequences) that wait."""
        return self._side.queued

    def infer(self, request: Request) -> Awaitable[Answer]:
        """Queue, run, answer. Cancelling the caller drops the request wherever it is."""
        if not isinstance(self._side, Inferring):
            raise InvalidInput(
                f'"{self.spec.name}" is a language model: it predicts no rows. Ask it to generate:'
                f" /v1/chat/completions, /v1/completions or /v2/models/{self.spec.name}/generate"
            )
        return self._side.infer(request)

    def generate(self, request: GenerateRequest) -> Generation:
        """Admit, and send to the replica with the least to do. Raises why not."""
        if not isinstance(self._side, Generating):
            raise InvalidInput(
                f'"{self.spec.name}" generates no text: it predicts rows. Ask it at /v2/models/{self.spec.name}/infer'
            )
        return self._side.begin(request)

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, let the admitted ones end within `grace_s`, then stop the replicas."""
        scheduler = self._side.scheduler
        scheduler.refuse()
        until = time.monotonic() + grace_s
        try:
            while scheduler.outstanding and time.monotonic() < until:
                await asyncio.sleep(0.005)
        finally:
            self._side.stop(NotReady("the server stopped before the answer came; retry elsewhere"))
            await self.pool.close()

    def info(self, versions: tuple[str, ...]) -> ModelInfo:
        manifest = self.spec.manifest
        return ModelInfo(
            name=self.spec.name,
            version=self.spec.version,
            versions=versions,
            runtime=manifest.runtime,
            signature=self.signature,
            max_batch_size=self.spec.batching.max_batch_size if self.signature.batchable else 0,
            description=manifest.description,
            tags=self._tags(),
        )

    def _tags(self) -> tuple[str, ...]:
        if isinstance(self._side, Generating):
            return ("generation",)
        return ("embeddings",) if _embeds_text(self.signature) else ()

    def load(self) -> Load | None:
        """What the replicas of a model that generates hold now; None of any other."""
        return self._side.load() if isinstance(self._side, Generating) else None

    def snapshot(self) -> VersionStatistics:
        """Statistics up to now."""
        return msgspec.structs.replace(self.statistics, batches=[self._batches[rows] for rows in sorted(self._batches)])

    def _executed(self, rows: int, compute_s: float) -> None:
        self.statistics.executions += 1
        entry = self._batches.get(rows)
        if entry is None:
            entry = self._batches[rows] = BatchStatistics(rows)
        entry.count += 1
        entry.compute_s += compute_s


def _embeds_text(signature: Signature) -> bool:
    if len(signature.inputs) != 1 or len(signature.outputs) != 1:
        return False
    text, vector = signature.inputs[0], signature.outputs[0]
    return text.datatype == "BYTES" and len(text.shape) == 1 and vector.datatype == "FP32" and len(vector.shape) == 2
