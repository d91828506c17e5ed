"""Stand-ins for tests of your own: `FakePlane` answers for models that are plain functions, in this process.

Public and stable: applications may test against it. Knows core and the plane's values; starts nothing.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

import msgspec

from foretell.core.errors import DeadlineExceeded, ForetellError, NotFound, NotReady, did_you_mean
from foretell.core.reference import Reference
from foretell.core.request import Request, Response, Timing
from foretell.core.tensor import Signature, Tensors
from foretell.plane.info import IndexEntry, ModelInfo, VersionStatistics
from foretell.server.http import Body, HttpApp
from foretell.server.http import Request as HttpRequest
from foretell.server.http import Response as HttpResponse

Predict = Callable[[Tensors], Tensors]


class FakeModel(msgspec.Struct):
    """One version. `predict` maps inputs to outputs and may raise; `delay_s` is how long an answer takes.

    `aliases` are names that lead to this version; the newest version of a name is its default.
    """

    name: str
    signature: Signature
    predict: Predict
    version: str = "1"
    delay_s: float = 0.0
    ready: bool = True
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    description: str = ""
    max_batch_size: int = 64


class FakePlane:
    """The plane's door (`infer`, `describe`, `models`, `ready`, `load`, `unload`, `index`, `statistics`)
    over `FakeModel`s, with real deadlines and cancellation.

    `requests` keeps what arrived, `cancelled` counts requests whose caller went away, `refuse` (an error) is
    raised by every `infer` while it is set.
    """

    def __init__(self, *models: FakeModel) -> None:
        self.served: list[FakeModel] = list(models)
        self.requests: list[Request] = []
        self.refusals: list[ForetellError] = []
        self.cancelled = 0
        self.refuse: Exception | None = None
        self._unloaded: list[FakeModel] = []
        self._statistics: dict[tuple[str, str], VersionStatistics] = {}

    def find(self, reference: Reference) -> FakeModel:
        versions = [m for m in self.served if m.name == reference.name]
        if not versions:
            known = did_you_mean(reference.name, {m.name for m in self.served})
            raise NotFound(f'no model "{reference.name}" is served here. {known}')
        if not reference.selector:
            return max(versions, key=lambda m: int(m.version))
        for model in versions:
            if reference.selector == model.version or reference.selector in model.aliases:
                return model
        known = did_you_mean(reference.selector, [m.version for m in versions])
        raise NotFound(f'model "{reference.name}" has no version or alias "{reference.selector}". {known}')

    async def infer(self, reference: Reference, request: Request) -> Response:
        model = self.find(reference)
        if self.refuse is not None:
            raise self.refuse
        if not model.ready:
            raise NotReady(f'model "{model.name}" version {model.version} is loading; retry later')
        request.rows = model.signature.check(request.inputs)
        self.requests.append(request)
        statistics = self._counts(model)
        started = time.monotonic()
        if request.deadline is not None and request.deadline <= started:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        try:
            if model.delay_s:
                left = model.delay_s if request.deadline is None else request.deadline - started
                await asyncio.sleep(min(model.delay_s, left))
                if left < model.delay_s:
                    raise DeadlineExceeded("the deadline passed while the request ran")
            outputs = model.predict(request.inputs)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        except Exception:
            statistics.failed += 1
            raise
        compute_s = time.monotonic() - started
        statistics.succeeded += 1
        statistics.executions += 1
        statistics.inferences += request.rows
        statistics.compute_s += compute_s
        statistics.total_s += compute_s
        statistics.last_inference_ms = int(time.time() * 1000)
        timing = Timing(compute_s=compute_s, batch_rows=request.rows)
        return Response(outputs, model.name, model.version, timing, request.id)

    def refused(self, reference: Reference, error: ForetellError, protocol: str) -> None:
        self.refusals.append(error)

    def signature(self, reference: Reference) -> Signature:
        return self.find(reference).signature

    def describe(self, reference: Reference) -> ModelInfo:
        model = self.find(reference)
        versions = tuple(sorted((m.version for m in self.served if m.name == model.name), key=int))
        return ModelInfo(
            name=model.name,
            version=model.version,
            versions=versions,
            runtime="fake",
            signature=model.signature,
            max_batch_size=model.max_batch_size,
            description=model.description,
            tags=model.tags,
        )

    def models(self) -> list[ModelInfo]:
        return [self.describe(Reference(m.name, m.version)) for m in self.served]

    def ready(self, reference: Reference | None = None) -> bool:
        if reference is None:
            return all(m.ready for m in self.served)
        return self.find(reference).ready

    async def load(self, reference: Reference) -> None:
        back = [m for m in self._unloaded if m.name == reference.name]
        if not back:
            self.find(reference)
        self.served.extend(back)
        self._unloaded = [m for m in self._unloaded if m.name != reference.name]

    async def unload(self, name: str) -> None:
        self.find(Reference(name))
        self._unloaded.extend(m for m in self.served if m.name == name)
        self.served = [m for m in self.served if m.name != name]

    def index(self) -> list[IndexEntry]:
        served = [IndexEntry(m.name, m.version, "READY" if m.ready else "LOADING") for m in self.served]
        return served + [IndexEntry(m.name, m.version, "UNAVAILABLE", "unloaded") for m in self._unloaded]

    def statistics(self, reference: Reference | None = None) -> list[VersionStatistics]:
        models = self.served if reference is None else [self.find(reference)]
        return [self._counts(m) for m in models]

    def _counts(self, model: FakeModel) -> VersionStatistics:
        key = (model.name, model.version)
        return self._statistics.setdefault(key, VersionStatistics(model.name, model.version))


class Client:
    """Calls an HTTP application's handlers in this process, without sockets: routes, conversions and errors are
    the real ones. Only what connections do (limits, time-outs, compression) is left out.
    """

    def __init__(self, app: HttpApp) -> None:
        self._app = app

    async def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> HttpResponse:
        """The response to one request; errors come back as the responses a client would see."""
        lines = {k.lower().encode(): v.encode() for k, v in (headers or {}).items()}
        request = HttpRequest(method.encode(), target.encode(), lines, body)
        try:
            return await self._app.find(request)(request)
        except Exception as error:
            return self._app.refusal(request, error)

    async def get(self, target: str) -> HttpResponse:
        return await self.request("GET", target)

    async def post(self, target: str, value: object) -> HttpResponse:
        """Send `value` (msgspec structs, dicts, lists) as JSON."""
        return await self.request("POST", target, msgspec.json.encode(value))


def client(app: HttpApp) -> Client:
    """An in-process client of `foretell.server.app.App`."""
    return Client(app)
