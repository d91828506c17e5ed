"""The routes of OpenAI's API: models, embeddings, completions, chat. Knows which there are, not what they say."""

import msgspec

from foretell.core.errors import InvalidInput
from foretell.core.reference import parse_reference
from foretell.server.door import Inference
from foretell.server.http import Request, Response, explain, json_response
from foretell.server.openai_chat import ChatCompletion, ChatCompletions, ChatDocument
from foretell.server.openai_completions import Completion, CompletionDocument, Completions
from foretell.server.openai_embeddings import Embeddings, EmbeddingsApi, EmbeddingsDocument
from foretell.server.openai_shape import STATUSES, error_response
from foretell.server.router import Route, Router


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

    def __init__(self, plane: Inference) -> None:
        self._plane = plane

    async def models(self, request: Request) -> Response:
        names = sorted({info.name for info in self._plane.models()})
        return json_response(ModelList([ModelCard(name) for name in names]))

    async def model(self, request: Request) -> Response:
        reference = parse_reference(request.params["model"])
        self._plane.describe(reference)
        return json_response(ModelCard(str(reference)))

    def routes(self) -> list[Route]:
        tag = "OpenAI"
        embeddings, completions = EmbeddingsApi(self._plane), Completions(self._plane)
        chat = ChatCompletions(self._plane)
        return [
            Route("GET", "/v1/models", self.models, "Models", tag, None, ModelList),
            Route("GET", "/v1/models/{model}", self.model, "One model", tag, None, ModelCard, (400, 404)),
            Route("POST", "/v1/embeddings", embeddings.create, "Texts to vectors", tag, EmbeddingsDocument,
                  Embeddings, STATUSES),
            Route("POST", "/v1/completions", completions.create, "Continue prompts", tag, CompletionDocument,
                  Completion, STATUSES),
            Route("POST", "/v1/chat/completions", chat.create, "Answer a conversation", tag, ChatDocument,
                  ChatCompletion, STATUSES),
        ]  # fmt: skip


class Calls:
    """The same endpoints without a connection: a document in, status and document out, errors in OpenAI's shape."""

    def __init__(self, plane: Inference) -> None:
        self._router = Router(OpenAi(plane).routes())

    async def ask(self, endpoint: str, document: bytes, name: str) -> tuple[int, bytes]:
        """`name` is the id of the request."""
        request = Request(b"POST", endpoint.encode(), {b"x-request-id": name.encode()}, document)
        try:
            response = await self._router.find(request)(request)
            if not isinstance(response.body, bytes | bytearray | memoryview):
                if (close := getattr(response.body, "aclose", None)) is not None:
                    await close()
                raise InvalidInput("nobody reads the stream of a batch; leave stream out (at $.stream)")
        except Exception as error:
            response = error_response(explain(error))
        assert isinstance(response.body, bytes | bytearray | memoryview)
        return response.status, bytes(response.body)
