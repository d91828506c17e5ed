"""One generation request and the token events that answer it, as entrances, the plane and engines see them."""

from typing import Any, Literal

import msgspec


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the next token is chosen. None means the package's default, then the field's neutral value.

    `temperature` 0 is greedy. `seed` makes the draws, the same ones in whatever batch it runs; without one it is drawn.
    `logit_bias` maps token ids to what is added to their logits.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None


class Stops(msgspec.Struct, frozen=True, omit_defaults=True):
    """When a sequence ends. `max_tokens` None: as far as the context allows. `stop` texts stay out of the answer."""

    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


class Grammar(msgspec.Struct, frozen=True):
    """What the text must match. `text` is a JSON schema, a regular expression or a Lark grammar; empty for "json"."""

    kind: Literal["json", "json_schema", "regex", "lark"]
    text: str = ""


class Chat(msgspec.Struct, omit_defaults=True):
    """A conversation in OpenAI's shape; the package's chat template makes the prompt of it.

    `tool_choice`: "none", "auto", "required", or the name of the one function that must be called ("name:NAME").
    `parallel_calls`: the answer may hold several calls.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    tool_choice: str = "auto"
    parallel_calls: bool = True
    template_arguments: dict[str, Any] = {}


class GenerateRequest(msgspec.Struct, omit_defaults=True):
    """A prompt to continue: text, token ids, or a chat. `n` sequences answer it, each from the same prompt.

    `logprobs`: -1 none, 0 of the chosen tokens, k also of the k likeliest ones. `echo` repeats the prompt first.
    `priority`: 0 is the default; smaller numbers run earlier. `deadline`: monotonic seconds (the same clock in all
    processes of a machine) after which the answer is worthless. `protocol`, `sticky`: as in `core.request.Request`.
    `places`: where the asker's document holds "max_tokens" and "grammar", for messages about them.
    """

    prompt: str | list[int] | Chat
    sampling: Sampling = Sampling()
    stops: Stops = Stops()
    grammar: Grammar | None = None
    n: int = 1
    echo: bool = False
    logprobs: int = -1
    id: str = ""
    priority: int = 0
    deadline: float | None = None
    protocol: str = "python"
    sticky: str = ""
    places: dict[str, str] = {}


class TokenLogprob(msgspec.Struct, array_like=True, gc=False):
    """`token` is its id, `text` what it decodes to alone, `raw` its bytes; `top`: (id, bytes, logprob), best first."""

    token: int
    text: str
    raw: bytes
    logprob: float
    top: list[tuple[int, bytes, float]] = []


class Started(msgspec.Struct, tag=0, array_like=True, gc=False):
    """The request left the queue. Sent once, before everything else. `version` is the one that answers: the plane
    fills it in.
    """

    prompt_tokens: int
    cached_tokens: int
    version: str = ""


class Piece(msgspec.Struct, tag=1, array_like=True, gc=False):
    """Text of choice `choice`, whole characters only. `text` may be empty while a character or a stop is undecided."""

    choice: int
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob] = []


class ToolCall(msgspec.Struct, tag=2, array_like=True, gc=False):
    """One whole call; `arguments` is JSON text. `number` counts the calls of the choice from 0."""

    choice: int
    number: int
    name: str
    arguments: str


class Finished(msgspec.Struct, tag=3, array_like=True, gc=False):
    """The last event of a choice. A request is over when all `n` have one, or when it failed as a whole."""

    choice: int
    reason: Literal["stop", "length", "tool_calls"]
    completion_tokens: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0


Event = Started | Piece | ToolCall | Finished


class Load(msgspec.Struct, array_like=True, gc=False):
    """What a generator holds now: sequences running and waiting, tokens of KV memory and of the prefix cache.

    `hit_tokens` and `missed_tokens` are totals of prompt tokens found or not found in the prefix cache; `saved_s` is
    the time that speculation saved so far.
    """

    running: int = 0
    waiting: int = 0
    kv_tokens: int = 0
    kv_capacity: int = 0
    cached_tokens: int = 0
    hit_tokens: int = 0
    missed_tokens: int = 0
    saved_s: float = 0.0
