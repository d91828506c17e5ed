"""OpenAI's embeddings: /v1/embeddings, for models tagged "embeddings"."""

import base64
from typing import Any

import msgspec
import numpy as np

from foretell.core.errors import InvalidInput, ModelFailed
from foretell.core.reference import parse_reference
from foretell.core.request import Request as InferRequest
from foretell.core.tensor import Signature, Tensor, TensorSpec
from foretell.plane.info import ModelInfo
from foretell.server.door import Inference
from foretell.server.http import Request, Response, json_response
from foretell.server.openai_shape import read_document, request_id

_MAX_INPUTS = 2048


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


class EmbeddingsUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct):
    """`usage` counts UTF-8 bytes / 4, rounded up, per text: an estimate, since the plane counts no tokens."""

    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
    object: str = "list"


class EmbeddingsApi:
    """The handler, over one plane."""

    def __init__(self, plane: Inference) -> None:
        self._plane = plane

    async def create(self, request: Request) -> Response:
        document = read_document(request, EmbeddingsDocument)
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
            id=request_id(request, ""),
            protocol="openai",
            sticky=document.user,
        )
        result = await self._plane.infer(reference, infer)
        vectors = result.outputs[name]
        if document.dimensions is not None:
            vectors = _cut(vectors, document.dimensions)
        tokens = sum(-(-len(raw) // 4) for raw in rows)
        headers = b"foretell-version: %b\r\n" % result.version.encode()
        answer = Embeddings(_data(vectors, document.encoding_format), document.model, EmbeddingsUsage(tokens, tokens))
        return json_response(answer, 200, headers)


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
        where = "/v1/chat/completions" if "generation" in info.tags else f"/v2/models/{info.name}/infer"
        raise InvalidInput(f'model "{info.name}" does not map a text to a vector; ask it at {where}')
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
