"""OpenAI's shape: /v1/models and /v1/embeddings, for models tagged "embeddings". Errors in OpenAI's shape too."""

import base64
from typing import Any

import msgspec
import numpy as np

from foretell.core.errors import ForetellError, InvalidInput, ModelFailed, NotFound
from foretell.core.reference import parse_reference
from foretell.core.request import Request as InferRequest
from foretell.core.tensor import Signature, Tensor, TensorSpec
from foretell.plane.info import ModelInfo
from foretell.server.door import Door
from foretell.server.http import Request, Response, headers_of, json_response, status_of
from foretell.server.router import Route

_MAX_INPUTS = 2048
_STATUSES = (400, 404, 405, 413, 415, 429, 500, 501, 503, 504)


class EmbeddingsDocument(msgspec.Struct):
    """input: one text or up to 2,048. encoding_format: float or base64 (little-endian float32). dimensions: at
    most the model's; longer vectors are cut and normalised again. user: keeps a caller on one version.
    """

    input: Any
    model: str
    encoding_format: str = "float"
    dimensions: int | None = None
    user: str = ""


class Embedding(msgspec.Struct):
    embedding: Any
    index: int
    object: str = "embedding"


class Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct):
    """`usage` counts UTF-8 bytes / 4, rounded up, per text: an estimate, since the plane counts no tokens."""

    data: list[Embedding]
    model: str
    usage: Usage
    object: str = "list"


class ModelCard(msgspec.Struct):
    id: str
    created: int = 0
    owned_by: str = "foretell"
    object: str = "model"


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"


class OpenAi:
    """Handlers of OpenAI's API over one plane."""

    def __init__(self, plane: Door) -> None:
        self._plane = plane

    async def models(self, request: Request) -> Response:
        names = sorted({info.name for info in self._plane.models()})
        return json_response(ModelList([ModelCard(name) for name in names]))

    async def model(self, request: Request) -> Response:
        reference = parse_reference(request.params["model"])
        self._plane.describe(reference)
        return json_response(ModelCard(str(reference)))

    async def embeddings(self, request: Request) -> Response:
        document = _read(request)
        texts = _texts(document.input)
        if document.encoding_format not in ("float", "base64"):
            raise InvalidInput(f'encoding_format is "{document.encoding_format}"; write "float" or "base64"')
        reference = parse_reference(document.model)
        info = self._plane.describe(reference)
        spec = _text_input(info)
        name = _vector_output(info.signature).name
        rows = np.empty(len(texts), dtype=object)
        rows[:] = [text.encode() for text in texts]
        infer = InferRequest(
            {spec.name: rows.reshape([-1] + [1] * (len(spec.shape) - 1))},
            len(texts),
            protocol="openai",
            sticky=document.user,
        )
        result = await self._plane.infer(reference, infer)
        vectors = result.outputs[name]
        if document.dimensions is not None:
            vectors = _cut(vectors, document.dimensions)
        tokens = sum(-(-len(raw) // 4) for raw in rows)
        headers = b"foretell-version: %b\r\n" % result.version.encode()
        answer = Embeddings(_data(vectors, document.encoding_format), document.model, Usage(tokens, tokens))
        return json_response(answer, 200, headers)

    def routes(self) -> list[Route]:
        tag = "OpenAI"
        return [
            Route("GET", "/v1/models", self.models, "Models", tag, None, ModelList),
            Route("GET", "/v1/models/{model}", self.model, "One model", tag, None, ModelCard, (400, 404)),
            Route("POST", "/v1/embeddings", self.embeddings, "Texts to vectors", tag, EmbeddingsDocument,
                  Embeddings, _STATUSES),
        ]  # fmt: skip


def error_response(error: Exception) -> Response:
    """An error in OpenAI's shape, so that the openai client raises its own exceptions with our message."""
    status = status_of(error)
    kind = {404: "not_found_error", 429: "rate_limit_error"}.get(status)
    if kind is None:
        kind = "invalid_request_error" if status < 500 else "server_error"
    message = error.message if isinstance(error, ForetellError) else str(error)
    code = "model_not_found" if isinstance(error, NotFound) and "model" in message else None
    detail = {"message": message, "type": kind, "param": None, "code": code}
    return json_response({"error": detail}, status, headers_of(error))


def _read(request: Request) -> EmbeddingsDocument:
    try:
        return msgspec.json.decode(request.body, type=EmbeddingsDocument)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the request does not fit /v1/embeddings: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None


def _texts(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise InvalidInput("input must be a text or a list of texts (at $.input)")
    if len(texts) > _MAX_INPUTS:
        raise InvalidInput(f"input has {len(texts)} texts, at most {_MAX_INPUTS} go into one request (at $.input)")
    for index, text in enumerate(texts):
        if isinstance(text, str):
            if not text:
                raise InvalidInput(f"text {index} is empty (at $.input[{index}])")
        elif isinstance(text, int) or (isinstance(text, list) and all(isinstance(t, int) for t in text)):
            raise InvalidInput(
                "token ids are not taken, since they depend on the tokenizer of the client; send the texts"
                " (langchain: check_embedding_ctx_length=False)"
            )
        else:
            raise InvalidInput(f"input must be a text or a list of texts (at $.input[{index}])")
    return texts


def _text_input(info: ModelInfo) -> TensorSpec:
    inputs = info.signature.inputs
    if "embeddings" not in info.tags or len(inputs) != 1 or inputs[0].datatype != "BYTES":
        raise InvalidInput(
            f'model "{info.name}" does not map a text to a vector; ask it at /v2/models/{info.name}/infer'
        )
    return inputs[0]


def _vector_output(signature: Signature) -> TensorSpec:
    vectors = [s for s in signature.outputs if len(s.shape) == 2 and s.datatype in ("FP16", "FP32", "FP64")]
    if not vectors:
        raise ModelFailed("the model is tagged embeddings but has no output of shape [rows, dimensions]")
    return vectors[0]


def _cut(vectors: Tensor, dimensions: int) -> Tensor:
    have = vectors.shape[1]
    if not 0 < dimensions <= have:
        raise InvalidInput(f"dimensions is {dimensions}, the model makes 1 to {have} (at $.dimensions)")
    if dimensions == have:
        return vectors
    cut = vectors[:, :dimensions]
    norm = np.linalg.norm(cut, axis=1, keepdims=True)
    return cut / np.where(norm > 0, norm, 1)


def _data(vectors: Tensor, encoding: str) -> list[Embedding]:
    if encoding == "base64":
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        return [Embedding(base64.b64encode(row.tobytes()).decode(), i) for i, row in enumerate(rows)]
    return [Embedding(row, i) for i, row in enumerate(vectors.tolist())]
