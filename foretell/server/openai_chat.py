"""OpenAI's chat: /v1/chat/completions, whole or as a stream of chunks, with tools, formats and logprobs."""

import secrets
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from foretell.core.errors import ForetellError, InvalidInput, did_you_mean
from foretell.core.generation import Chat, Event, Finished, GenerateRequest, Piece, TokenLogprob, ToolCall
from foretell.core.reference import parse_reference
from foretell.server.door import Inference
from foretell.server.generation import (
    Choice,
    GenerationFields,
    Length,
    Totals,
    collect,
    grammar_of,
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


class ToolFunction(msgspec.Struct, omit_defaults=True):
    """`parameters` is a JSON schema; arguments always fit it."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    type: Literal["function"]
    function: ToolFunction


class FunctionName(msgspec.Struct):
    name: str


class NamedTool(msgspec.Struct):
    """The one function that must be called."""

    type: Literal["function"]
    function: FunctionName


class ChatDocument(GenerationFields, kw_only=True):
    """messages: in OpenAI's form, parts of type text only. max_completion_tokens wins over max_tokens.
    chat_template_kwargs: variables for the model's chat template.
    """

    model: str
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Length | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: "list[ChatLogprob] | UnsetType" = UNSET


class ChatLogprobs(msgspec.Struct):
    content: list[ChatLogprob]
    refusal: None = None


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str


class Called(msgspec.Struct):
    """`index` counts the calls of a streamed choice."""

    id: str
    function: CalledFunction
    type: str = "function"
    index: int | UnsetType = UNSET


class ChatMessage(msgspec.Struct):
    content: str | None
    tool_calls: list[Called] | UnsetType = UNSET
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(msgspec.Struct):
    """With `stream`, chunks with `delta` instead of `message` come as server-sent events."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatCompletions:
    """The handler, over one plane."""

    def __init__(self, plane: Inference) -> None:
        self._plane = plane

    async def create(self, request: Request) -> Response:
        document = read_document(request, ChatDocument)
        reference = parse_reference(document.model)
        stream = bool(document.stream)
        answer = answering("chatcmpl-", "chat.completion.chunk" if stream else "chat.completion", document.model)
        asked = _request(document, request_id(request, answer.id))
        events = self._plane.generate(reference, asked)
        if stream:
            usage = bool(document.stream_options and document.stream_options.include_usage)
            return await streamed(events, ChatWriter(answer, asked.n, usage, asked.logprobs >= 0))
        choices, totals = await collect(events, asked.n)
        logprobs = asked.logprobs >= 0
        whole = [_choice(index, choice, logprobs) for index, choice in enumerate(choices)]
        return json_response(
            ChatCompletion(answer.id, answer.object, answer.created, answer.model, whole, usage_of(totals))
        )


def _request(document: ChatDocument, name: str) -> GenerateRequest:
    newer = document.max_completion_tokens is not None
    limit = document.max_completion_tokens if newer else document.max_tokens
    if document.top_logprobs is not None and not document.logprobs:
        raise InvalidInput('top_logprobs needs "logprobs": true (at $.top_logprobs)')
    if document.functions:
        raise InvalidInput("functions is the form before tools; send tools and tool_choice (at $.functions)")
    chat = Chat(
        document.messages,
        [msgspec.to_builtins(tool) for tool in document.tools or ()],
        _tool_choice(document),
        document.parallel_tool_calls is not False,
        document.chat_template_kwargs or {},
    )
    return GenerateRequest(
        chat,
        sampling_of(document),
        stops_of(document, limit),
        grammar_of(document),
        n=document.n or 1,
        logprobs=(document.top_logprobs or 0) if document.logprobs else -1,
        id=name,
        priority=document.priority or 0,
        protocol="openai",
        sticky=document.user or "",
        places=places_of(document, "max_completion_tokens" if newer else "max_tokens"),
    )


def _tool_choice(document: ChatDocument) -> str:
    """The choice as `core.generation.Chat` has it, checked against the tools there are."""
    choice = document.tool_choice
    names = [tool.function.name for tool in document.tools or ()]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidInput(f'two tools have the name "{name}" (at $.tools[{index}].function.name)')
    if isinstance(choice, NamedTool):
        wanted = choice.function.name
        if wanted not in names:
            raise InvalidInput(
                f'tool_choice names "{wanted}", which is not among the tools (at $.tool_choice.function.name).'
                f" {did_you_mean(wanted, names)}"
            )
        return f"name:{wanted}"
    if choice == "required" and not names:
        raise InvalidInput('tool_choice is "required", but there are no tools (at $.tool_choice); send tools')
    return choice or "auto"


class ChatWriter:
    """Chunks of one streamed chat. What repeats is encoded once: text is all that a usual chunk adds."""

    def __init__(self, answer: Answering, choices: int, usage: bool, logprobs: bool) -> None:
        head = b"data: " + answer.head()
        self._empty = head + b'"choices":[],"usage":'
        self._heads = [head + b'"choices":[{"index":%d,"delta":' % index for index in range(choices)]
        self._contents = [head + b'{"content":' for head in self._heads]
        # A client that asked for the usage reads null until it comes.
        self._tail = b'}],"usage":null}\n\n' if usage else b"}]}\n\n"
        self._content_tail = b'},"logprobs":null,"finish_reason":null' + self._tail
        self._usage = usage
        self._logprobs = logprobs
        self._totals = Totals()

    def write(self, event: Event) -> bytes:
        if isinstance(event, Piece):
            if self._logprobs and event.logprobs:
                return self._content_with_logprobs(event)
            if not event.text:
                return b""
            return b"".join((self._contents[event.choice], encode(event.text), self._content_tail))
        if isinstance(event, ToolCall):
            call = {"tool_calls": [_called(event, event.number)]}
            return b"".join(
                (self._heads[event.choice], encode(call), b',"logprobs":null,"finish_reason":null', self._tail)
            )
        if isinstance(event, Finished):
            self._totals.finished(event)
            reason = b'{},"logprobs":null,"finish_reason":' + encode(event.reason)
            return b"".join((self._heads[event.choice], reason, self._tail))
        self._totals.started(event)
        role = b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null' + self._tail
        return b"".join([head + role for head in self._heads])

    def end(self) -> bytes:
        return self._empty + encode(usage_of(self._totals)) + b"}\n\n" + DONE if self._usage else DONE

    def fail(self, error: ForetellError) -> bytes:
        return error_event(error)

    def _content_with_logprobs(self, piece: Piece) -> bytes:
        parts = (
            self._contents[piece.choice],
            encode(piece.text),
            b'},"logprobs":',
            encode(ChatLogprobs([_logprob(each) for each in piece.logprobs])),
            b',"finish_reason":null',
            self._tail,
        )
        return b"".join(parts)


def _choice(index: int, choice: Choice, logprobs: bool) -> ChatChoice:
    text = choice.text
    message = ChatMessage(text if text or not choice.calls else None)
    if choice.calls:
        message.tool_calls = [_called(call) for call in choice.calls]
    told = ChatLogprobs([_logprob(each) for each in choice.logprobs]) if logprobs else None
    return ChatChoice(index, message, told, choice.reason)


def _called(call: ToolCall, index: int | UnsetType = UNSET) -> Called:
    return Called("call_" + secrets.token_hex(12), CalledFunction(call.name, call.arguments), index=index)


def _logprob(told: TokenLogprob) -> ChatLogprob:
    top = [ChatLogprob(raw.decode("utf-8", "replace"), finite(value), list(raw)) for _, raw, value in told.top]
    return ChatLogprob(told.text, finite(told.logprob), list(told.raw), top)
