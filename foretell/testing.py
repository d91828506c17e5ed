"""Stand-ins for tests of your own: `FakePlane` answers for models that are plain functions or prepared texts, in
this process.

Public and stable: applications may test against it. Knows core and the plane's values; starts nothing.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

import msgspec

from foretell.core.errors import DeadlineExceeded, ForetellError, InvalidInput, NotFound, NotReady, did_you_mean
from foretell.core.generation import (
    Chat,
    Event,
    Finished,
    GenerateRequest,
    Piece,
    Started,
    TokenLogprob,
    ToolCall,
)
from foretell.core.reference import Reference
from foretell.core.request import Request, Response, Timing
from foretell.core.tensor import Signature, Tensors, TensorSpec
from foretell.plane.info import IndexEntry, ModelInfo, VersionStatistics
from foretell.server.http import Body, HttpApp
from foretell.server.http import Request as HttpRequest
from foretell.server.http import Response as HttpResponse

Predict = Callable[[Tensors], Tensors]


GENERATION = Signature((TensorSpec("text_input", "BYTES", (1,)),), (TensorSpec("text_output", "BYTES", (1,)),))
"""The signature of a model that generates."""


class FakeGenerator(msgspec.Struct):
    """A prepared answer: every choice says `pieces`, one token each, `delay_s` apart.

    The prompt counts as one token a word (or as the ids given, or the words of all messages); `cached` of them came
    from the cache. `calls` (name, JSON arguments) are made when the request brings tools and allows them, after the
    pieces. `error` is raised instead of piece `fails_at`; with -1 instead of `Started`. Token ids are the pieces'
    numbers; with logprobs every token has -0.5 and k runners-up.
    """

    pieces: Sequence[str] = ("Hello", " wor", "ld", "!")
    delay_s: float = 0.0
    calls: Sequence[tuple[str, str]] = ()
    cached: int = 0
    error: Exception | None = None
    fails_at: int = -1

    def events(self, request: GenerateRequest) -> list[Event | Exception]:
        """Everything the answer consists of, in order."""
        if self.error is not None and self.fails_at < 0:
            return [self.error]
        events: list[Event | Exception] = [Started(_prompt_tokens(request), self.cached)]
        if request.echo and isinstance(request.prompt, str):
            events += [Piece(choice, request.prompt, []) for choice in range(request.n)]
        limit = len(self.pieces) if request.stops.max_tokens is None else request.stops.max_tokens
        said = self.pieces[:limit]
        for number, text in enumerate(said):
            if self.error is not None and number == self.fails_at:
                return [*events, self.error]
            logprobs = _fake_logprobs(number, text, request.logprobs)
            events += [Piece(choice, text, [number], logprobs) for choice in range(request.n)]
        if self.error is not None:
            return [*events, self.error]
        chat = request.prompt if isinstance(request.prompt, Chat) else None
        calls = self.calls if chat and chat.tools and chat.tool_choice != "none" else ()
        for choice in range(request.n):
            events += [ToolCall(choice, number, name, text) for number, (name, text) in enumerate(calls)]
            reason = "tool_calls" if calls else ("length" if limit < len(self.pieces) else "stop")
            events.append(Finished(choice, reason, len(said)))  # type: ignore[arg-type]
        return events


def _prompt_tokens(request: GenerateRequest) -> int:
    if isinstance(request.prompt, Chat):
        return sum(len(str(message.get("content", "")).split()) for message in request.prompt.messages)
    return len(request.prompt.split() if isinstance(request.prompt, str) else request.prompt)


def _fake_logprobs(number: int, text: str, wanted: int) -> list[TokenLogprob]:
    if wanted < 0:
        return []
    top = [(number + k, (text if k == 0 else f"{text}{k}").encode(), -0.5 - k) for k in range(wanted)]
    return [TokenLogprob(number, text, text.encode(), -0.5, top)]


def _no_rows(inputs: Tensors) -> Tensors:
    raise InvalidInput("this model generates; it has no rows to predict")


class FakeModel(msgspec.Struct):
    """One version. `predict` maps inputs to outputs and may raise; `delay_s` is how long an answer takes.

    With a `generator` it answers `generate` instead and is tagged "generation". `aliases` are names that lead to
    this version; the newest version of a name is its default.
    """

    name: str
    signature: Signature = GENERATION
    predict: Predict = _no_rows
    version: str = "1"
    delay_s: float = 0.0
    ready: bool = True
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    description: str = ""
    max_batch_size: int = 64
    generator: FakeGenerator | None = None


class FakePlane:
    """The plane's door (`infer`, `generate`, `describe`, `models`, `ready`, `load`, `unload`, `index`, `statistics`)
    over `FakeModel`s, with real deadlines and cancellation.

    `requests` and `generations` keep what arrived, `cancelled` counts requests whose caller went away, `refuse` (an
    error) is raised by every `infer` and `generate` while it is set.
    """

    def __init__(self, *models: FakeModel) -> None:
        self.served: list[FakeModel] = list(models)
        self.requests: list[Request] = []
        self.generations: list[GenerateRequest] = []
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

    async def generate(self, reference: Reference, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        model = self.find(reference)
        if self.refuse is not None:
            raise self.refuse
        if model.generator is None:
            raise InvalidInput(f'model "{model.name}" does not generate')
        if not model.ready:
            raise NotReady(f'model "{model.name}" version {model.version} is loading; retry later')
        self.generations.append(request)
        statistics = self._counts(model)
        finished = 0
        try:
            for event in model.generator.events(request):
                if model.generator.delay_s and not isinstance(event, Started):
                    await asyncio.sleep(model.generator.delay_s)
                if request.deadline is not None and request.deadline <= time.monotonic():
                    raise DeadlineExceeded("the deadline passed while the request ran")
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Started):
                    event.version = model.version
                finished += isinstance(event, Finished)
                statistics.succeeded += finished == request.n
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += finished < request.n
            raise
        except Exception:
            statistics.failed += 1
            raise

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
            tags=(*model.tags, "generation") if model.generator is not None else model.tags,
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
