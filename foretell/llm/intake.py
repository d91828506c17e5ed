"""From a request to what the engine needs: its fields checked, its prompt as tokens, its grammar compiled.

Owns every check of a generation request, with the place in an OpenAI-shaped body that is wrong. Knows no engine and
no executor.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from foretell.core.errors import ContextExceeded, InvalidInput
from foretell.core.generation import Chat, GenerateRequest, Grammar, Sampling, Stops
from foretell.llm.grammar import Constraint, Grammars
from foretell.llm.template import ChatTemplate
from foretell.llm.text import Tokenizer
from foretell.llm.tools import BEGIN, END, Tokens, called, calls_grammar, described, parameters_schema

MOST_CHOICES = 128
MOST_LOGPROBS = 20
"""The most `n` and `top_logprobs`, as OpenAI has them."""
MOST_STOPS = 64
"""Stop texts are looked for between steps, at the cost of everybody's next token. OpenAI takes 4."""


class Limits(NamedTuple):
    """What the model can take: tokens of prompt and answer together, width of the vocabulary, its ids of the end."""

    context: int
    vocab: int
    eos: tuple[int, ...]


class Prepared(NamedTuple):
    """A checked request. `echo` is the text to begin with; `grammar` what the answer must match; `tools`: it may
    hold calls. The answer ends at `stop_ids`, after `max_tokens` at the latest."""

    prompt: list[int]
    sampling: Sampling
    grammar: Grammar | None
    tools: bool
    stop_ids: tuple[int, ...]
    max_tokens: int
    echo: str


class Intake:
    """Makes `Prepared` of requests to one package. `defaults` fill in the sampling that a request leaves open."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, grammars: Grammars, limits: Limits, defaults: Sampling
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._grammars = grammars
        self._limits = limits
        self._defaults = defaults
        self._tokens = _tool_tokens(tokenizer, grammars)
        longest = max((len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)), default=1)
        self._most_characters = limits.context * longest
        """No text that is longer fits the context."""

    def prepare(self, request: GenerateRequest) -> Prepared:
        """Raises `InvalidInput` that names the field, what was given and what is expected."""
        _check_request(request)
        sampling = _resolved(request.sampling, self._defaults)
        _check_sampling(sampling, self._limits.vocab)
        _check_stops(request.stops, self._limits.vocab)
        grammar, chat = request.grammar, None
        tools: list[dict[str, Any]] = []
        if isinstance(request.prompt, Chat):
            chat = request.prompt
            functions = called(chat)
            if functions:
                tools = chat.tools
                grammar = calls_grammar(chat, functions, grammar, self._tokens)
            if not self._template.knows_tools:
                chat = described(msgspec.structs.replace(chat, messages=self._template.plain_messages(chat.messages)))
        prompt = self._prompt_ids(request.prompt if chat is None else chat)
        max_tokens = _room(len(prompt), request.stops, self._limits.context)
        if grammar is not None:  # compiled, or refused, before anything of the request is kept
            self._compile(grammar, request.grammar, tools)
        stops = request.stops
        stop_ids = stops.stop_token_ids if stops.ignore_eos else (*self._limits.eos, *stops.stop_token_ids)
        echo = ""
        if request.echo:
            echo = request.prompt if isinstance(request.prompt, str) else self._tokenizer.decode(prompt)
        return Prepared(prompt, sampling, grammar, bool(tools), stop_ids, max_tokens, echo)

    def constraint(self, prepared: Prepared) -> Constraint | None:
        """The grammar of one choice, at its beginning."""
        return None if prepared.grammar is None else self._grammars.start(prepared.grammar)

    def _compile(self, grammar: Grammar, answer: Grammar | None, tools: Sequence[dict[str, Any]]) -> None:
        """Raises `InvalidInput` about the schema that the request holds, not about the grammar that was made of it."""
        try:
            self._grammars.start(grammar)
        except InvalidInput:
            if tools and answer is not None:
                self._grammars.start(answer)
            for number, tool in enumerate(tools):
                try:
                    self._grammars.start(Grammar("json_schema", parameters_schema(tool["function"])))
                except InvalidInput as error:
                    raise InvalidInput(
                        f'function "{tool["function"]["name"]}": {error.message}'
                        f" (at $.tools[{number}].function.parameters)"
                    ) from None
            raise

    def _prompt_ids(self, prompt: str | list[int] | Chat) -> list[int]:
        if isinstance(prompt, Chat):
            return self._encode(self._template.render(prompt), special=False)
        if isinstance(prompt, str):
            ids = self._encode(prompt, special=True) if prompt else []
        else:
            ids = prompt
            _check_ids(ids, self._limits.vocab, "prompt")
        if not ids:
            raise InvalidInput("the prompt is empty; send at least one token of text (at $.prompt)")
        return ids

    def _encode(self, text: str, special: bool) -> list[int]:
        # Cutting megabytes into tokens would hold up everybody's next token, only to refuse them.
        if len(text) > self._most_characters:
            raise ContextExceeded(
                f"this model's context is {self._limits.context} tokens, and the prompt's {len(text)} characters are"
                f" more than fit into it; the longest that can is of {self._most_characters}. Shorten the prompt"
            )
        return self._tokenizer.encode(text, special)


def _tool_tokens(tokenizer: Tokenizer, grammars: Grammars) -> Tokens:
    # Control tokens have no text, and calls are read from text: tags that are control tokens are spelled.
    tags = {tokenizer.token_id(tag) for tag in (BEGIN, END)}
    are_tokens = None not in tags and not tags & tokenizer.special_ids
    silent = tags | tokenizer.special_ids
    others = [token for token in grammars.named_ids if token not in silent and tokenizer.token_bytes(token)]
    return Tokens(are_tokens, others)


def _room(prompt: int, stops: Stops, context: int) -> int:
    """How many tokens may be generated. As OpenAI and vLLM have it, asking for more than fits is an error."""
    if prompt >= context:
        raise ContextExceeded(
            f"this model's context is {context} tokens, and the prompt alone has {prompt}. Shorten the prompt to at"
            f" most {context - 1} tokens, so that one can be generated"
        )
    if stops.max_tokens is None:
        return context - prompt
    if prompt + stops.max_tokens > context:
        raise ContextExceeded(
            f"max_tokens is {stops.max_tokens}, but this model's context is {context} tokens and the prompt has"
            f" {prompt}, which leaves {context - prompt}. Ask for no more than that, or leave max_tokens out"
            " (at $.max_tokens)"
        )
    return stops.max_tokens


def _resolved(given: Sampling, defaults: Sampling) -> Sampling:
    """`given`, with the package's defaults where it says nothing."""
    missing = {
        name: getattr(defaults, name)
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        if getattr(given, name) is None
    }
    return msgspec.structs.replace(given, **missing)


def _check_request(request: GenerateRequest) -> None:
    _check_range("n", request.n, 1, MOST_CHOICES)
    _check_range("logprobs", request.logprobs, -1, MOST_LOGPROBS)
    if request.echo and request.logprobs >= 0:
        raise InvalidInput("logprobs of the prompt are not computed; leave out echo or logprobs (at $.echo)")


def _check_sampling(sampling: Sampling, vocab: int) -> None:
    _check_range("temperature", sampling.temperature, 0, 2)
    _check_range("top_p", sampling.top_p, 0, 1)
    _check_range("top_k", sampling.top_k, -1, math.inf)
    _check_range("min_p", sampling.min_p, 0, 1)
    _check_range("presence_penalty", sampling.presence_penalty, -2, 2)
    _check_range("frequency_penalty", sampling.frequency_penalty, -2, 2)
    penalty = sampling.repetition_penalty
    if penalty is not None and not 0 < penalty < math.inf:
        raise InvalidInput(f"repetition_penalty is {penalty}; expected a number above 0 (at $.repetition_penalty)")
    _check_ids(sampling.logit_bias, vocab, "logit_bias")
    for token, bias in sampling.logit_bias.items():
        _check_range(f"logit_bias.{token}", bias, -100, 100)


def _check_stops(stops: Stops, vocab: int) -> None:
    _check_range("max_tokens", stops.max_tokens, 1, math.inf)
    _check_range("min_tokens", stops.min_tokens, 0, stops.max_tokens or math.inf)
    if len(stops.stop) > MOST_STOPS:
        raise InvalidInput(f"there are {len(stops.stop)} stop texts; send at most {MOST_STOPS} (at $.stop)")
    if "" in stops.stop:
        raise InvalidInput(
            f"a stop text is empty, and every text holds it; leave it out (at $.stop[{stops.stop.index('')}])"
        )
    _check_ids(stops.stop_token_ids, vocab, "stop_token_ids")


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    # Written so that NaN fails.
    if value is not None and not (low <= value <= high and abs(value) < math.inf):
        expected = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise InvalidInput(f"{name} is {value}; expected {expected} (at $.{name})")


def _check_ids(ids: "Sequence[int] | dict[int, float]", vocab: int, name: str) -> None:
    for at, token in enumerate(ids):
        if not 0 <= token < vocab:
            place = f"$.{name}" if isinstance(ids, dict) else f"$.{name}[{at}]"
            raise InvalidInput(
                f"{token} is no token id of this model, whose vocabulary has {vocab}, 0 to {vocab - 1} (at {place})"
            )
