"""The methods of the inference service: message in, message out, `ForetellError`s raised. Speaks to the plane
only; knows nothing of the calls, channels and status codes that carry the messages.
"""

import time
from collections.abc import Awaitable, Callable

from foretell.core.errors import ForetellError, InvalidInput, NotReady, Unsupported
from foretell.core.reference import Reference, parse_reference
from foretell.core.request import Request
from foretell.core.tensor import TensorSpec
from foretell.plane.info import VersionStatistics
from foretell.server import oip_pb2
from foretell.server.answer import best_classes
from foretell.server.door import Door
from foretell.server.grpc_codec import NO_OPTIONS, read_inputs, read_options, requested_outputs, write_outputs
from foretell.server.grpc_generate import GenerateMethod
from foretell.server.grpc_method import Message, Method, Routes, StreamMethod
from foretell.server.grpc_stream import InferStream

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = ("model_repository", "model_repository(unload_dependents)", "model_configuration", "statistics")
_NO_SHARED_MEMORY = "shared memory is not served; send tensors in the message"
_UNSERVED = {
    "SystemSharedMemoryStatus": _NO_SHARED_MEMORY,
    "SystemSharedMemoryRegister": _NO_SHARED_MEMORY,
    "SystemSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryStatus": _NO_SHARED_MEMORY,
    "CudaSharedMemoryRegister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "TraceSetting": "tracing cannot be set here; observations and /metrics tell where time goes",
    "LogSettings": "logging cannot be set here; use foretell.toml",
}
_MAX_REFERENCES = 4096


class InferenceService:
    """Answers the methods of oip.proto. `stream_window` is how many requests of one stream run at a time;
    `version` is the product's, told by ServerMetadata.
    """

    def __init__(self, plane: Door, version: str, stream_window: int) -> None:
        self._plane = plane
        self._version = version
        self._stream = InferStream(self.infer, GenerateMethod(plane, self.reference), stream_window)
        self._references: dict[tuple[str, str], Reference] = {}

    def routes(self) -> Routes:
        methods: dict[str, Method | StreamMethod] = {
            "ServerLive": Method(oip_pb2.ServerLiveRequest, self._server_live),
            "ServerReady": Method(oip_pb2.ServerReadyRequest, self._server_ready),
            "ModelReady": Method(oip_pb2.ModelReadyRequest, self._model_ready),
            "ServerMetadata": Method(oip_pb2.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": Method(oip_pb2.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": Method(oip_pb2.ModelConfigRequest, self._model_config),
            "ModelInfer": Method(oip_pb2.ModelInferRequest, self.infer),
            "ModelStreamInfer": StreamMethod(oip_pb2.ModelInferRequest, self._stream.answer),
            "ModelStatistics": Method(oip_pb2.ModelStatisticsRequest, self._statistics),
            "RepositoryIndex": Method(oip_pb2.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": Method(oip_pb2.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": Method(oip_pb2.RepositoryModelUnloadRequest, self._unload),
        }
        for name, reason in _UNSERVED.items():
            methods[name] = Method(oip_pb2.ServerLiveRequest, _refusal(f"{name}: {reason}"))
        return {f"/{SERVICE}/{name}": method for name, method in methods.items()}

    async def infer(self, message: Message, deadline: float | None) -> Message:
        """Answer one ModelInferRequest. The earlier of `deadline` and the request's own timeout holds."""
        reference = self.reference(message.model_name, message.model_version)
        try:
            signature = self._plane.signature(reference)
            inputs = read_inputs(message)
            wanted = requested_outputs(message, signature) if message.outputs else {}
            options = read_options(message) if message.parameters else NO_OPTIONS
        except ForetellError as error:
            self._plane.refused(reference, error, "grpc")
            raise
        if options.timeout_s:
            own = time.monotonic() + options.timeout_s
            deadline = own if deadline is None else min(own, deadline)
        request = Request(inputs, 0, message.id, options.priority, deadline, protocol="grpc", sticky=options.sticky)
        response = await self._plane.infer(reference, request)
        answer = oip_pb2.ModelInferResponse(model_name=response.model, model_version=response.version, id=request.id)
        raw = bool(message.raw_input_contents) or not message.inputs
        outputs = response.outputs
        for name, classes in wanted.items():
            if classes:
                outputs = {**outputs, name: best_classes(name, outputs[name], classes)}
        write_outputs(outputs, wanted or outputs, raw, answer)
        if options.final_mark:
            answer.parameters["triton_final_response"].bool_param = True
        return answer

    def reference(self, name: str, version: str) -> Reference:
        """The reference that a name (`name`, `name@alias`) and a version field (may be empty) make."""
        key = (name, version)
        known = self._references.get(key)
        if known is not None:
            return known
        reference = parse_reference(name)
        if version:
            if reference.selector and reference.selector != version:
                raise InvalidInput(f'the name "{name}" and version "{version}" disagree; give one of them')
            reference = parse_reference(f"{reference.name}@{version}")
        if len(self._references) >= _MAX_REFERENCES:
            self._references.clear()
        self._references[key] = reference
        return reference

    async def _server_live(self, message: Message, deadline: float | None) -> Message:
        return oip_pb2.ServerLiveResponse(live=True)

    async def _server_ready(self, message: Message, deadline: float | None) -> Message:
        return oip_pb2.ServerReadyResponse(ready=self._plane.ready())

    async def _model_ready(self, message: Message, deadline: float | None) -> Message:
        ready = self._plane.ready(self.reference(message.name, message.version))
        return oip_pb2.ModelReadyResponse(ready=ready)

    async def _server_metadata(self, message: Message, deadline: float | None) -> Message:
        return oip_pb2.ServerMetadataResponse(name="foretell", version=self._version, extensions=EXTENSIONS)

    async def _model_metadata(self, message: Message, deadline: float | None) -> Message:
        info = self._plane.describe(self.reference(message.name, message.version))
        answer = oip_pb2.ModelMetadataResponse(name=info.name, versions=info.versions, platform=info.runtime)
        for side, specs in ((answer.inputs, info.signature.inputs), (answer.outputs, info.signature.outputs)):
            for spec in specs:
                side.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return answer

    async def _model_config(self, message: Message, deadline: float | None) -> Message:
        info = self._plane.describe(self.reference(message.name, message.version))
        batches = info.signature.batchable
        config = oip_pb2.ModelConfig(
            name=info.name,
            platform=info.runtime,
            backend=info.runtime,
            max_batch_size=info.max_batch_size if batches else 0,
        )
        for side, specs in ((config.input, info.signature.inputs), (config.output, info.signature.outputs)):
            for spec in specs:
                dims = spec.shape[1:] if batches else spec.shape
                side.add(name=spec.name, data_type=_config_type(spec), dims=dims)
        if batches:
            config.dynamic_batching.SetInParent()
        return oip_pb2.ModelConfigResponse(config=config)

    async def _statistics(self, message: Message, deadline: float | None) -> Message:
        reference = self.reference(message.name, message.version) if message.name else None
        answer = oip_pb2.ModelStatisticsResponse()
        for statistics in self._plane.statistics(reference):
            _write_statistics(statistics, answer.model_stats.add())
        return answer

    async def _index(self, message: Message, deadline: float | None) -> Message:
        answer = oip_pb2.RepositoryIndexResponse()
        for entry in self._plane.index():
            if entry.state == "READY" or not message.ready:
                answer.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return answer

    async def _load(self, message: Message, deadline: float | None) -> Message:
        name = message.model_name or message.repository_name
        for parameter in message.parameters:
            raise Unsupported(
                f'parameter "{parameter}": a model cannot be reconfigured while loading; set its options in'
                " foretell.toml, or add a new version"
            )
        reference = parse_reference(name)
        await self._plane.load(reference)
        if not self._plane.ready(reference):
            raise NotReady(f'model "{name}" was loaded but cannot answer yet; RepositoryIndex says why')
        return oip_pb2.RepositoryModelLoadResponse(model_name=name, is_loaded=True)

    async def _unload(self, message: Message, deadline: float | None) -> Message:
        name = message.model_name or message.repository_name
        await self._plane.unload(parse_reference(name).name)
        return oip_pb2.RepositoryModelUnloadResponse(model_name=name, is_unloaded=True)


def _refusal(reason: str) -> Callable[[Message, float | None], Awaitable[Message]]:
    async def refuse(message: Message, deadline: float | None) -> Message:
        raise Unsupported(reason)

    return refuse


def _config_type(spec: TensorSpec) -> int:
    name = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    return int(getattr(oip_pb2, name))


def _write_statistics(statistics: VersionStatistics, message: Message) -> None:
    message.name = statistics.name
    message.version = statistics.version
    message.last_inference = statistics.last_inference_ms
    message.inference_count = statistics.inferences
    message.execution_count = statistics.executions
    stats = message.inference_stats
    ran = statistics.succeeded - statistics.cache_hits
    for field, count, seconds in (
        (stats.success, statistics.succeeded, statistics.total_s),
        (stats.fail, statistics.failed + statistics.rejected, 0.0),
        (stats.queue, ran, statistics.queue_s),
        (stats.compute_input, ran, 0.0),
        (stats.compute_infer, ran, statistics.compute_s),
        (stats.compute_output, ran, 0.0),
        (stats.cache_hit, statistics.cache_hits, 0.0),
        (stats.cache_miss, 0, 0.0),
    ):
        field.count = count
        field.ns = round(seconds * 1e9)
    for batch in statistics.batches:
        entry = message.batch_stats.add(batch_size=batch.rows)
        for field, seconds in (
            (entry.compute_input, 0.0),
            (entry.compute_infer, batch.compute_s),
            (entry.compute_output, 0.0),
        ):
            field.count = batch.count
            field.ns = round(seconds * 1e9)
