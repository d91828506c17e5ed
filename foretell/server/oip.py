"""The routes of the Open Inference Protocol v2 over HTTP, with the repository and statistics extensions."""

from typing import Any, TypeVar

import msgspec

from foretell.core.errors import ForetellError, InvalidInput, NotFound
from foretell.core.reference import Reference, parse_reference
from foretell.core.tensor import Signature, TensorSpec
from foretell.plane.info import IndexEntry, ModelInfo, VersionStatistics
from foretell.server.answer import InferAnswer, write_answer
from foretell.server.convert import InferDocument, RequestReader
from foretell.server.door import Door
from foretell.server.http import Request, Response, json_response
from foretell.server.router import Route

_T = TypeVar("_T")

EXTENSIONS = (
    "binary_tensor_data", "classification", "generate", "model_configuration", "model_repository",
    "model_repository(unload_dependents)", "parameters", "statistics",
)  # fmt: skip
_REMEMBERED = 1024
_MISSES = (400, 404, 405)
INFER_STATUSES = (*_MISSES, 413, 415, 429, 500, 501, 503, 504)


class ServerMetadata(msgspec.Struct):
    name: str
    version: str
    extensions: tuple[str, ...]


class TensorMetadata(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct):
    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(msgspec.Struct):
    live: bool


class Ready(msgspec.Struct, omit_defaults=True):
    ready: bool
    name: str = ""
    error: str = ""


class Statistics(msgspec.Struct):
    """Times are nanoseconds, as the extension demands."""

    model_stats: list[dict[str, Any]]


class IndexQuery(msgspec.Struct):
    """`ready` true lists only the models that can answer now."""

    ready: bool = False


class LoadQuery(msgspec.Struct):
    """Nothing is read from it: what is loaded is the store's package, not a client's configuration."""

    parameters: dict[str, Any] | None = None


class OpenInference:
    """Handlers of the protocol over one plane."""

    def __init__(self, plane: Door, version: str) -> None:
        self._plane = plane
        self._metadata = ServerMetadata("foretell", version, EXTENSIONS)
        self._references: dict[tuple[str, str], Reference] = {}
        self._readers: dict[int, RequestReader] = {}

    # -- inference

    async def infer(self, request: Request) -> Response:
        reference = self._reference(request.params)
        try:
            call = self._reader(self._plane.signature(reference)).read(request)
        except ForetellError as error:
            self._plane.refused(reference, error, "rest")
            raise
        return write_answer(call, await self._plane.infer(reference, call.request))

    def _reader(self, signature: Signature) -> RequestReader:
        # By identity, since hashing a signature costs more than reading a request; the reader keeps it alive.
        reader = self._readers.get(id(signature))
        if reader is None:
            if len(self._readers) >= _REMEMBERED:
                self._readers.clear()
            reader = self._readers[id(signature)] = RequestReader(signature)
        return reader

    def _reference(self, params: dict[str, str]) -> Reference:
        """The model that a path names: `name`, `name@3`, `name@alias`, or `name` with /versions/3."""
        key = (params["model"], params.get("version", ""))
        reference = self._references.get(key)
        if reference is None:
            reference = reference_of(*key)
            if len(self._references) >= _REMEMBERED:
                self._references.clear()
            self._references[key] = reference
        return reference

    # -- health and metadata

    async def server(self, request: Request) -> Response:
        return json_response(self._metadata)

    async def live(self, request: Request) -> Response:
        return json_response(Live(True))

    async def ready(self, request: Request) -> Response:
        ready = self._plane.ready()
        error = "" if ready else "no model can answer now; see /v2/repository/index"
        return json_response(Ready(ready, "", error), 200 if ready else 503)

    async def model_ready(self, request: Request) -> Response:
        reference = self._reference(request.params)
        ready = self._plane.ready(reference)
        if not ready:
            self._plane.describe(reference)
        error = "" if ready else f'model "{reference}" cannot answer now; see /v2/repository/index'
        return json_response(Ready(ready, reference.name, error), 200 if ready else 503)

    async def model(self, request: Request) -> Response:
        info = self._plane.describe(self._reference(request.params))
        signature = info.signature
        return json_response(
            ModelMetadata(
                info.name,
                (info.version,) if "version" in request.params else info.versions,
                info.runtime,
                [_tensor(spec) for spec in signature.inputs],
                [_tensor(spec) for spec in signature.outputs],
            )
        )

    async def config(self, request: Request) -> Response:
        return json_response(_config(self._plane.describe(self._reference(request.params))))

    # -- statistics and repository

    async def model_stats(self, request: Request) -> Response:
        found = self._plane.statistics(self._reference(request.params))
        return json_response(Statistics([_statistics(s) for s in found]))

    async def all_stats(self, request: Request) -> Response:
        return json_response(Statistics([_statistics(s) for s in self._plane.statistics()]))

    async def index(self, request: Request) -> Response:
        query = _read(request, IndexQuery)
        entries = self._plane.index()
        return json_response([e for e in entries if e.state == "READY" or not query.ready])

    async def load(self, request: Request) -> Response:
        query = _read(request, LoadQuery)
        if query.parameters:
            raise InvalidInput(
                f"cannot load with parameters ({', '.join(query.parameters)}): models come from the store as they"
                " are; register a new version with `foretell add` instead"
            )
        await self._plane.load(parse_reference(request.params["model"]))
        return json_response({})

    async def unload(self, request: Request) -> Response:
        _read(request, LoadQuery)
        reference = parse_reference(request.params["model"])
        if reference.selector:
            raise InvalidInput(f'unload takes a name without a version; write "{reference.name}"')
        await self._plane.unload(reference.name)
        return json_response({})

    def routes(self) -> list[Route]:
        """The route table; each per-model route also comes with /versions/{version}."""
        tag = "Open Inference Protocol"
        routes = [
            Route("GET", "/v2", self.server, "Server metadata", tag, None, ServerMetadata),
            Route("GET", "/v2/health/live", self.live, "Is the server up?", tag, None, Live),
            Route("GET", "/v2/health/ready", self.ready, "Can every model answer?", tag, None, Ready, (503,)),
            Route("GET", "/v2/models/stats", self.all_stats, "Statistics of all models", tag, None, Statistics),
            Route("POST", "/v2/repository/index", self.index, "What is here", tag, IndexQuery,
                  list[IndexEntry], (400, 413, 415)),
            Route("POST", "/v2/repository/models/{model}/load", self.load, "Load a model", tag, LoadQuery, dict,
                  (*_MISSES, 403, 409, 413, 415, 500, 501, 503)),
            Route("POST", "/v2/repository/models/{model}/unload", self.unload, "Unload a model", tag, LoadQuery,
                  dict, (*_MISSES, 409, 413, 415, 500, 501, 503)),
        ]  # fmt: skip
        for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route("GET", base, self.model, "Inputs and outputs", tag, None, ModelMetadata, _MISSES),
                Route("GET", base + "/ready", self.model_ready, "Can it answer?", tag, None, Ready, (*_MISSES, 503)),
                Route("GET", base + "/config", self.config, "Configuration", tag, None, dict, _MISSES),
                Route("GET", base + "/stats", self.model_stats, "Statistics", tag, None, Statistics, _MISSES),
                Route("POST", base + "/infer", self.infer, "Infer", tag, InferDocument, InferAnswer, INFER_STATUSES),
            ]
        return routes


def reference_of(model: str, version: str) -> Reference:
    """The reference of a path's model and version segments. Raises `NotFound` or `InvalidInput`."""
    reference = parse_reference(model)
    if not version:
        return reference
    if reference.selector not in ("", version):
        raise InvalidInput(f'"{model}" and /versions/{version} disagree; give the version once')
    if not version.isascii() or not version.isdigit():
        raise NotFound(f'"{version[:40]}" is no version number; aliases are written {reference.name}@alias')
    return Reference(reference.name, version)


def _read(request: Request, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(request.body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the body is not as expected: {error}. It may be left out") from None


def _tensor(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(spec.name, spec.datatype, spec.shape)


def _config(info: ModelInfo) -> dict[str, Any]:
    """The model configuration in the shape clients know; dims leave the row axis out where there is one."""
    skip = 1 if info.signature.batchable else 0

    def dims(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        kinds = {"BYTES": "STRING"}
        return [
            {"name": s.name, "data_type": "TYPE_" + kinds.get(s.datatype, s.datatype), "dims": s.shape[skip:]}
            for s in specs
        ]

    return {
        "name": info.name,
        "platform": info.runtime,
        "backend": info.runtime,
        "max_batch_size": info.max_batch_size if skip else 0,
        "input": dims(info.signature.inputs),
        "output": dims(info.signature.outputs),
        "parameters": {"description": {"string_value": info.description}} if info.description else {},
    }


def _statistics(s: VersionStatistics) -> dict[str, Any]:
    def duration(count: int, seconds: float) -> dict[str, int]:
        return {"count": count, "ns": round(seconds * 1e9)}

    return {
        "name": s.name,
        "version": s.version,
        "last_inference": s.last_inference_ms,
        "inference_count": s.inferences,
        "execution_count": s.executions,
        "inference_stats": {
            "success": duration(s.succeeded, s.total_s),
            "fail": duration(s.failed, 0.0),
            "rejected": duration(s.rejected, 0.0),
            "queue": duration(s.succeeded, s.queue_s),
            "compute_infer": duration(s.succeeded - s.cache_hits, s.compute_s),
            "cache_hit": duration(s.cache_hits, 0.0),
        },
        "batch_stats": [{"batch_size": b.rows, "compute_infer": duration(b.count, b.compute_s)} for b in s.batches],
    }
