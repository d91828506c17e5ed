"""What all entrances for generation share: the fields that say how to generate, and whole answers made of events.

Knows core's generation values; neither routes nor the shape of any protocol's answer.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from foretell.core.errors import InvalidInput, ModelFailed
from foretell.core.generation import (
    Event,
    Finished,
    Grammar,
    Piece,
    Sampling,
    Started,
    Stops,
    TokenLogprob,
    ToolCall,
)

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Length = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Text = Annotated[str, Meta(min_length=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]


class JsonSchema(msgspec.Struct):
    """The schema of `response_format`; `name` and `strict` are taken for compatibility: answers always fit."""

    schema: dict[str, Any]
    name: str = ""
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """`json_object`: any JSON object; `json_schema`: JSON that fits `json_schema.schema`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct):
    """What the text must match; give one. `json`: a schema, or its text. `grammar`: in Lark's form."""

    json: dict[str, Any] | str | None = None
    json_object: bool | None = None
    regex: Text | None = None
    choice: Annotated[list[Text], Meta(min_length=1)] | None = None
    grammar: Text | None = None


class GenerationFields(msgspec.Struct, kw_only=True):
    """How to generate: OpenAI's fields and those that vLLM adds. null or absent: the package's default.

    top_k: 0 or -1 considers all tokens. guided_*: the older names of structured_outputs. priority: 0 is the default,
    smaller numbers run earlier. user: keeps a caller on one version.
    """

    max_tokens: Length | None = None
    min_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[Token, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Text | list[Text] | None = None
    stop_token_ids: list[Token] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: Text | None = None
    guided_choice: Annotated[list[Text], Meta(min_length=1)] | None = None
    guided_grammar: Text | None = None
    priority: Annotated[int, Meta(gt=-(2**31), lt=2**31)] | None = None
    user: str | None = None


def sampling_of(fields: GenerationFields) -> Sampling:
    """How tokens are chosen."""
    return Sampling(
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=None if fields.top_k is None else max(fields.top_k, 0),
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        logit_bias=fields.logit_bias or {},
        seed=fields.seed,
    )


def stops_of(fields: GenerationFields, max_tokens: int | None) -> Stops:
    """Where choices end."""
    stop = fields.stop or ()
    return Stops(
        max_tokens=max_tokens,
        min_tokens=fields.min_tokens or 0,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
    )


def grammar_of(fields: GenerationFields) -> Grammar | None:
    """What the text must match. Raises `InvalidInput` if it is asked for in two ways, or a part is missing."""
    return next(iter(_grammars(fields).values()), None)


def places_of(fields: GenerationFields, limit: str = "max_tokens") -> dict[str, str]:
    """Where the document holds the grammar, and the most tokens (in the field `limit`): `GenerateRequest.places`."""
    grammars = {"grammar": place for place in _grammars(fields)}  # noqa: B035 - there is one at most
    return grammars if limit == "max_tokens" else {**grammars, "max_tokens": limit}


def _grammars(fields: GenerationFields) -> dict[str, Grammar]:
    """At most one, by the place that it is given at."""
    found: dict[str, Grammar] = {}
    form = fields.response_format
    if form is not None and form.type == "json_object":
        found["response_format"] = Grammar("json")
    elif form is not None and form.type == "json_schema":
        if form.json_schema is None:
            raise InvalidInput(
                'the schema is missing; send {"name": …, "schema": …} (at $.response_format.json_schema)'
            )
        found["response_format"] = Grammar("json_schema", _json(form.json_schema.schema))
    asked = fields.structured_outputs or StructuredOutputs()
    if asked.json_object:
        found["structured_outputs.json_object"] = Grammar("json")
    for kind, name, values in (
        ("json_schema", "json", (asked.json, fields.guided_json)),
        ("regex", "regex", (asked.regex, fields.guided_regex)),
        ("lark", "choice", (asked.choice, fields.guided_choice)),
        ("lark", "grammar", (asked.grammar, fields.guided_grammar)),
    ):
        for place, value in zip((f"structured_outputs.{name}", f"guided_{name}"), values, strict=True):
            if value is not None:
                found[place] = Grammar(kind, _source(value))  # type: ignore[arg-type]
    if len(found) > 1:
        raise InvalidInput(
            f"the text can match one thing only; send one of {', '.join(found)} (at $.{list(found)[-1]})"
        )
    return found


def _source(value: dict[str, Any] | list[str] | str) -> str:
    if isinstance(value, list):
        # Lark's literals are written as JSON's strings are.
        return "start: " + " | ".join(json.dumps(choice) for choice in value)
    return _json(value) if isinstance(value, dict) else value


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()


class Choice(msgspec.Struct):
    """One whole sequence: what its events add up to."""

    pieces: list[str] = msgspec.field(default_factory=list)
    logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)
    calls: list[ToolCall] = msgspec.field(default_factory=list)
    reason: str = ""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Totals:
    """Counts the tokens of a request's events: `prompt`, how many of them were `cached`, `completion`; keeps which
    `version` answers.
    """

    __slots__ = ("cached", "completion", "prompt", "version")

    def __init__(self) -> None:
        self.prompt = self.cached = self.completion = 0
        self.version = ""

    def started(self, event: Started) -> None:
        self.version = event.version
        self.prompt += event.prompt_tokens
        self.cached += event.cached_tokens

    def finished(self, event: Finished) -> None:
        self.completion += event.completion_tokens


async def collect(events: AsyncGenerator[Event, None], choices: int) -> tuple[list[Choice], Totals]:
    """All of an answer with `choices` sequences. Closes `events`, also when the caller is cancelled."""
    whole = [Choice() for _ in range(choices)]
    totals = Totals()
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Piece):
                choice = whole[event.choice]
                choice.pieces.append(event.text)
                choice.logprobs += event.logprobs
            elif isinstance(event, ToolCall):
                whole[event.choice].calls.append(event)
            elif isinstance(event, Finished):
                whole[event.choice].reason = event.reason
                totals.finished(event)
            else:
                totals.started(event)
    if not all(choice.reason for choice in whole):
        raise ModelFailed("the model's answer broke off without an end; retry, and see the server's log")
    return whole, totals


async def merged(answers: Sequence[AsyncGenerator[Event, None]], n: int) -> AsyncGenerator[Event, None]:
    """The events of several requests of `n` choices each as they come; choices are counted through.

    The first failure ends all of them; so does closing it.
    """
    queue: asyncio.Queue[Event | asyncio.Task[None]] = asyncio.Queue()

    async def pump(events: AsyncGenerator[Event, None], first: int) -> None:
        async with aclosing(events):
            async for event in events:
                if not isinstance(event, Started):
                    event.choice += first
                queue.put_nowait(event)

    tasks = [asyncio.create_task(pump(events, number * n)) for number, events in enumerate(answers)]
    for task in tasks:
        task.add_done_callback(queue.put_nowait)
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if isinstance(item, asyncio.Task):
                running -= 1
                await item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
