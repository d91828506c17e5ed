"""What a load asks a language model: prompts made up to a length, with a common beginning if wanted, or real ones from
a file. Knows no server; lengths become tokens by a scale that somebody else measures.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from foretell.core.errors import ConfigError

# Common words that are one token with the blank before them in most vocabularies.
WORDS = """
    time year people way day man thing woman life child world school state family student group country problem
    hand part place case week company system program question work government number night point home water room
    mother area money story fact month lot right study book eye job word business issue side kind head house
    service friend father power hour game line end member law car city community name president team minute idea
    kid body information back parent face others level office door health person art war history party result
    change morning reason research girl guy moment air teacher force education foot boy age policy music market
    sense nation plan college interest death experience effect use class control field development role effort
    rate heart drug show leader light voice wife police mind price report decision son view relationship town
    road arm difference value building action season society tax director position player record paper space
    ground form event matter center couple site project activity star table court oil situation cost industry
    figure street image phone data picture practice piece land product doctor wall patient worker news test
    movie north love support technology
""".split()  # noqa: SIM905  # a list of words reads worse


class Prompt(msgspec.Struct, frozen=True):
    """One request: a text or token ids to continue, or the messages of a chat; at most `output` tokens are wanted."""

    content: str | list[int] | list[dict[str, Any]]
    output: int


Prompts = Callable[[int], Prompt]
"""The prompt of request number n; the same n gives the same prompt."""


class Lengths(msgspec.Struct, frozen=True):
    """A distribution of lengths in tokens: all `low`, uniform from `low` to `high`, or log-normal around the median
    `low` (sigma 0.6, as wide as chat traffic's; cut at eight times the median).
    """

    kind: Literal["fixed", "uniform", "lognormal"]
    low: int
    high: int

    def draw(self, random: np.random.Generator) -> int:
        """One length, at least 1."""
        if self.kind == "fixed":
            return self.low
        if self.kind == "uniform":
            return int(random.integers(self.low, self.high, endpoint=True))
        return max(1, min(round(random.lognormal(math.log(self.low), 0.6)), self.high))


def parse_lengths(text: str, option: str) -> Lengths:
    """`128` is fixed, `64-512` uniform, `~256` log-normal around 256. Raises `ConfigError` that names `option`."""
    low, dash, high = text.removeprefix("~").partition("-")
    try:
        numbers = int(low), int(high) if dash else int(low)
        if not 1 <= numbers[0] <= numbers[1] or (dash and text.startswith("~")):
            raise ValueError
    except ValueError:
        raise ConfigError(f'{option} is "{text}"; write 128, 64-512 (uniform) or ~256 (log-normal)') from None
    if text.startswith("~"):
        return Lengths("lognormal", numbers[0], 8 * numbers[0])
    return Lengths("uniform" if dash else "fixed", *numbers)


class Scale(msgspec.Struct, frozen=True):
    """How many tokens a server counts for w made-up words: `fixed` + `per_word` · w."""

    fixed: float = 0.0
    per_word: float = 1.0

    def words(self, tokens: int) -> int:
        """Words for a prompt of about `tokens`, at least one."""
        return max(1, round((tokens - self.fixed) / self.per_word))


class MadePrompts:
    """Prompts of random words: `prefix` words that all share, then words of their own, so that nothing else is shared.

    prompt, output: lengths in tokens; the prefix is part of the prompt's length. seed: same seed, same prompts.
    """

    def __init__(
        self, prompt: Lengths, output: Lengths, prefix: int = 0, scale: Scale = Scale(), seed: int = 0
    ) -> None:
        if prefix and prefix >= prompt.low and prompt.kind != "lognormal":
            raise ConfigError(
                f"a common prefix of {prefix} tokens leaves nothing of prompts of {prompt.low}: make prompts longer"
            )
        self._prompt, self._output, self._scale, self._seed = prompt, output, scale, seed
        self._prefix = words(np.random.default_rng([seed, 0]), scale.words(prefix)) if prefix else []

    def __call__(self, number: int) -> Prompt:
        random = np.random.default_rng([self._seed, number + 1])
        count = self._scale.words(self._prompt.draw(random))
        own = words(random, max(1, count - len(self._prefix)))
        return Prompt(" ".join([*self._prefix, *own]), self._output.draw(random))


def words(random: np.random.Generator, count: int) -> list[str]:
    """`count` words, drawn at random."""
    return [WORDS[n] for n in random.integers(0, len(WORDS), count)]


class FilePrompts:
    """Real prompts, asked in turn. `output` is drawn for those that don't say how long their answer may be."""

    def __init__(self, path: Path, output: Lengths, seed: int = 0) -> None:
        self.prompts = read_prompts(path)
        self._output, self._seed = output, seed

    def __call__(self, number: int) -> Prompt:
        content, output = self.prompts[number % len(self.prompts)]
        if output is None:
            output = self._output.draw(np.random.default_rng([self._seed, number]))
        return Prompt(content, output)


def read_prompts(path: Path) -> list[tuple[str | list[dict[str, Any]], int | None]]:
    """The prompts of a file, one a line: plain text, or JSON with `prompt`, `text` or `messages`, and perhaps
    `max_tokens`. Empty lines are skipped. Raises `ConfigError` that names the line which is none of these.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'prompts "{path}" can\'t be read: {error}') from error
    found = [_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError(f'prompts "{path}" is empty; write one prompt a line, plain or as JSON')
    return found


def _line(path: Path, number: int, line: str) -> tuple[str | list[dict[str, Any]], int | None]:
    if not line.lstrip().startswith("{"):
        return line, None
    try:
        entry = msgspec.json.decode(line)
        content = next(entry[key] for key in ("messages", "prompt", "text") if key in entry)
        output = entry.get("max_tokens")
        if not isinstance(content, str | list) or not (output is None or isinstance(output, int)):
            raise ValueError
    except (msgspec.DecodeError, StopIteration, ValueError):
        raise ConfigError(
            f'line {number} of "{path}" is no prompt; write {{"prompt": "…"}} or {{"messages": […]}}'
        ) from None
    return content, output
