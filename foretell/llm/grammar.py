"""Structured output: a grammar over text becomes a mask over tokens at every position. The only importer of llguidance.

Knows the tokenizer and grammars; not who asks, nor what a token is drawn from.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from foretell.core.errors import InvalidInput, PackageError
from foretell.core.generation import Grammar

_KEPT = 128
"""Compiled grammars that are kept for the next request with the same text."""
SPACES = r"[ \t\n\r]{0,40}"
"""White space between JSON's tokens: enough for indented text, bounded so that no model writes nothing else."""


class Constraint:
    """What one sequence may say next. Made by `Grammars.start`; not shared between sequences."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._mask: NDArray[np.uint32] | None = None

    def mask(self) -> NDArray[np.uint32]:
        """The tokens allowed next, uint32 [ceil(vocab / 32)], one bit each, least significant first.

        The end-of-sequence tokens are among them where the text may end, and alone where it must.
        """
        if self._mask is None:
            self._mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        return self._mask

    def advance(self, token: int) -> None:
        """`token`, one of those the mask allows, was chosen; others are ignored once the text is finished."""
        self._mask = None
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)

    def forced(self) -> list[int]:
        """The tokens that come next because the grammar leaves no other text; [] where there is a choice."""
        forced: list[int] = self._matcher.compute_ff_tokens()
        return forced

    @property
    def finished(self) -> bool:
        """The text matches, and nothing may follow."""
        return self._matcher.is_stopped()

    @property
    def error(self) -> str:
        """Why the grammar cannot go on (it grew beyond llguidance's limits); "" while all is well."""
        return _first_lines(self._matcher.get_error())


class Grammars:
    """Compiles grammars for one package's tokenizer; equal texts are compiled once while they are kept.

    `vocab` is the width of the model's logits, which may be larger than the tokenizer's vocabulary.
    """

    def __init__(self, tokenizer_json: Path, vocab: int, eos: Sequence[int]) -> None:
        """Reads the tokenizer (about 0.4 s for 49,152 tokens). Raises `PackageError` if llguidance cannot."""
        try:
            self._tokenizer = LLTokenizer(str(tokenizer_json), n_vocab=vocab, eos_token=list(eos) or None)
        except (ValueError, OSError) as error:
            raise PackageError(f"{tokenizer_json} cannot constrain output: {error}") from None
        self.named_ids = [token for token in range(vocab) if self._tokenizer.is_special_token(token)]
        """Tokens that stand for no text in a grammar: control tokens, gaps, and added ones such as <think>. A Lark
        grammar allows them by id."""
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def start(self, grammar: Grammar) -> Constraint:
        """A constraint at the beginning of the text. Raises `InvalidInput` if nothing can match, or it is malformed."""
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._compiled[grammar] = self._compile(grammar)
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return Constraint(matcher.deep_copy())

    def _compile(self, grammar: Grammar) -> LLMatcher:
        where = _PLACES[grammar.kind]
        try:
            matcher = LLMatcher(self._tokenizer, _source(grammar))
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"{where}: {error}") from None
        if not matcher.is_error():
            matcher.compute_bitmask()  # finds out whether anything at all may be said; changes nothing
        if "NoExtensionBias" in matcher.get_error():
            raise InvalidInput(f"{where} is impossible: no text matches it. Widen it")
        if matcher.is_error():
            raise InvalidInput(f"{where} cannot be used: {_first_lines(matcher.get_error())}")
        return matcher


_PLACES = {
    "json": "the JSON grammar",
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "lark": "the Lark grammar",
}


def _source(grammar: Grammar) -> str:
    """The grammar as llguidance takes it. Raises `ValueError` where the text is no JSON."""
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text)
    schema = grammar.text if grammar.kind == "json_schema" else '{"type": "object"}'
    return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": SPACES})


def _first_lines(message: str) -> str:
    """llguidance's message without the dump of its state and of the grammar."""
    return message.split("<state>")[0].split("<grammar>")[0].strip()
