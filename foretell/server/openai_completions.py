"""OpenAI's text completions: /v1/completions, one prompt or several, whole or as a stream of chunks."""

from typing import Annotated

import msgspec
from msgspec import Meta

from foretell.core.errors import ForetellError, InvalidInput
from foretell.core.generation import Event, Finished, GenerateRequest, Piece, Started, TokenLogprob
from foretell.core.reference import parse_reference
from foretell.server.door import Inference
from foretell.server.generation import (
    Choice,
    GenerationFields,
    Text,
    Token,
    Totals,
    collect,
    grammar_of,
    merged,
    places_of,
    sampling_of,
    stops_of,
)
from foretell.server.http import Request, Response, json_response
from foretell.server.openai_shape import (
    DONE,
    Answering,
    StreamOptions,
    Usage,
    answering,
    error_event,
    finite,
    read_document,
    request_id,
    usage_of,
)
from foretell.server.sse import encode, streamed

_MAX_CHOICES = 1024
_DEFAULT_TOKENS = 16
"""OpenAI's own default, which its clients know."""


class CompletionDocument(GenerationFields, kw_only=True):
    """prompt: a text, token ids, or a list of either; every prompt is answered by n choices. max_tokens is 16 unless
    given. logprobs: how many runners-up to tell a token.
    """

    model: str
    prompt: Text | Annotated[list[Text | Token | Annotated[list[Token], Meta(min_length=1)]], Meta(min_length=1)]
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None


class CompletionLogprobs(msgspec.Struct):
    """One entry a token. `text_offset`: where in the choice's text each begins, in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(msgspec.Struct):
    """With `stream`, chunks of this shape come as server-sent events."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Completions:
    """The handler, over one plane."""

    def __init__(self, plane: Inference) -> None:
        self._plane = plane

    async def create(self, request: Request) -> Response:
        document = read_document(request, CompletionDocument)
        reference = parse_reference(document.model)
        answer = answering("cmpl-", "text_completion", document.model)
        asked = _requests(document, request_id(request, answer.id))
        events = [self._plane.generate(reference, each) for each in asked]
        n = document.n or 1
        together = events[0] if len(events) == 1 else merged(events, n)
        choices = len(events) * n
        logprobs = document.logprobs is not None
        if document.stream:
            usage = bool(document.stream_options and document.stream_options.include_usage)
            return await streamed(together, CompletionWriter(answer, choices, usage, logprobs))
        whole, totals = await collect(together, choices)
        told = [_choice(index, choice, logprobs) for index, choice in enumerate(whole)]
        return json_response(Completion(answer.id, answer.object, answer.created, answer.model, told, usage_of(totals)))


def _requests(document: CompletionDocument, name: str) -> list[GenerateRequest]:
    """One request a prompt."""
    if document.suffix:
        raise InvalidInput("suffix is not served: models here continue a prompt and fill no gaps (at $.suffix)")
    if document.best_of is not None and document.best_of > (document.n or 1):
        raise InvalidInput("best_of is not served; ask for n choices and choose among them (at $.best_of)")
    limit = _DEFAULT_TOKENS if document.max_tokens is None else document.max_tokens
    prompts = _prompts(document)
    return [
        GenerateRequest(
            prompt,
            sampling_of(document),
            stops_of(document, limit),
            grammar_of(document),
            n=document.n or 1,
            echo=bool(document.echo),
            logprobs=-1 if document.logprobs is None else document.logprobs,
            id=name if len(prompts) == 1 else f"{name}-{number}",
            priority=document.priority or 0,
            protocol="openai",
            places=places_of(document),
            sticky=document.user or "",
        )
        for number, prompt in enumerate(prompts)
    ]


def _prompts(document: CompletionDocument) -> list[str | list[int]]:
    given = document.prompt
    if isinstance(given, str):
        return [given]
    ids = [item for item in given if isinstance(item, int)]
    if len(ids) == len(given):
        return [ids]
    if ids:
        raise InvalidInput(
            "prompt mixes token ids with texts or lists; send one prompt, or a list of them (at $.prompt)"
        )
    if len(given) * (document.n or 1) > _MAX_CHOICES:
        raise InvalidInput(
            f"{len(given)} prompts with n = {document.n or 1} make more than {_MAX_CHOICES} choices; send fewer prompts"
            " (at $.prompt)"
        )
    return [item for item in given if not isinstance(item, int)]


class CompletionWriter:
    """Chunks of one streamed completion. What repeats is encoded once: text is all that a usual chunk adds."""

    def __init__(self, answer: Answering, choices: int, usage: bool, logprobs: bool) -> None:
        head = b"data: " + answer.head()
        self._empty = head + b'"choices":[],"usage":'
        self._heads = [head + b'"choices":[{"index":%d,"text":' % index for index in range(choices)]
        # A client that asked for the usage reads null until it comes.
        self._tail = b'}],"usage":null}\n\n' if usage else b"}]}\n\n"
        self._text_tail = b',"logprobs":null,"finish_reason":null' + self._tail
        self._usage = usage
        self._offsets = [0] * choices if logprobs else []
        self._totals = Totals()

    def write(self, event: Event) -> bytes:
        if isinstance(event, Piece):
            if self._offsets and event.logprobs:
                return self._text_with_logprobs(event)
            if not event.text:
                return b""
            return b"".join((self._heads[event.choice], encode(event.text), self._text_tail))
        if isinstance(event, Finished):
            self._totals.finished(event)
            reason = b'"","logprobs":null,"finish_reason":' + encode(event.reason)
            return b"".join((self._heads[event.choice], reason, self._tail))
        if isinstance(event, Started):
            self._totals.started(event)
        return b""

    def end(self) -> bytes:
        return self._empty + encode(usage_of(self._totals)) + b"}\n\n" + DONE if self._usage else DONE

    def fail(self, error: ForetellError) -> bytes:
        return error_event(error)

    def _text_with_logprobs(self, piece: Piece) -> bytes:
        told = legacy_logprobs(piece.logprobs, self._offsets[piece.choice])
        self._offsets[piece.choice] += sum(len(each.text) for each in piece.logprobs)
        parts = (
            self._heads[piece.choice],
            encode(piece.text),
            b',"logprobs":',
            encode(told),
            b',"finish_reason":null',
            self._tail,
        )
        return b"".join(parts)


def _choice(index: int, choice: Choice, logprobs: bool) -> CompletionChoice:
    told = legacy_logprobs(choice.logprobs, 0) if logprobs else None
    return CompletionChoice(index, choice.text, told, choice.reason)


def legacy_logprobs(told: list[TokenLogprob], offset: int) -> CompletionLogprobs:
    """Logprobs in the old shape; `offset` is how many characters the choice had before these tokens.

    The chosen token is among the runners-up of its position, so there may be one more than was asked for.
    """
    logprobs = CompletionLogprobs([], [], [], [])
    for each in told:
        logprobs.tokens.append(each.text)
        logprobs.token_logprobs.append(finite(each.logprob))
        top = {raw.decode("utf-8", "replace"): finite(value) for _, raw, value in reversed(each.top)}
        logprobs.top_logprobs.append({**top, each.text: finite(each.logprob)})
        logprobs.text_offset.append(offset)
        offset += len(each.text)
    return logprobs
