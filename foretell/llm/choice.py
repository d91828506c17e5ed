"""The text of one choice: tokens come in, pieces of text, tool calls and the end come out.

Owns the order in which text is looked at: whole characters, stop strings, tool calls. Knows no engine.
"""

from collections.abc import Sequence
from typing import Literal

from foretell.core.generation import Event, Finished, Piece, TokenLogprob, ToolCall
from foretell.llm.sampling import Sampled
from foretell.llm.text import Detokenizer, StopFinder, Tokenizer
from foretell.llm.tools import ToolParser

Reason = Literal["stop", "length"]


class Choice:
    """What choice `number` has said so far. `stop` texts count once `min_tokens` tokens were generated."""

    def __init__(
        self,
        number: int,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        tools: bool = False,
        logprobs: int = -1,
    ) -> None:
        self.number = number
        self.tokens = 0
        """Generated tokens, those that ended it included."""
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._stops = StopFinder(stop) if stop else None
        self._tools = ToolParser() if tools else None
        self._min_tokens = min_tokens
        self._logprobs = logprobs

    def take(
        self, sampled: Sequence[Sampled], reason: Reason | None, silent: bool = False
    ) -> tuple[list[Event], Reason | None]:
        """The events that more tokens make, all text in one piece, and why the choice is over, or None.

        `reason`: why the engine ended the sequence with the last of them. `silent`: that one is a token of the end
        and has no text. A stop text ends the choice wherever it is complete; tokens after it are dropped.
        """
        shown = sampled[:-1] if silent else sampled
        if self._stops is None:
            push = self._detokenizer.push
            text = "".join([push(one.token) for one in shown])
        else:
            text, end = self._until_stop(shown)
            if end >= 0:
                shown = shown[: end + 1]
                self.tokens += len(shown)
                return self._events(text, shown, over=True), "stop"
        self.tokens += len(sampled)
        if reason is not None:
            text += self._rest()
        return self._events(text, shown, over=reason is not None), reason

    def _until_stop(self, shown: Sequence[Sampled]) -> tuple[str, int]:
        """(text that may be shown, index of the token that completed a stop text or -1)."""
        assert self._stops is not None
        parts = []
        for at, one in enumerate(shown):
            text, found = self._detokenizer.push(one.token), False
            if self.tokens + at + 1 > self._min_tokens:
                text, found = self._stops.push(text)
            parts.append(text)
            if found:
                return "".join(parts), at
        return "".join(parts), -1

    def _events(self, text: str, shown: Sequence[Sampled], over: bool) -> list[Event]:
        calls: list[Event] = []
        if self._tools is not None:
            first = self._tools.calls
            text, read = self._tools.push(text)
            if over:
                text += self._tools.flush()
            calls = [ToolCall(self.number, first + at, call.name, call.arguments) for at, call in enumerate(read)]
        if not shown and not text:
            return calls
        logprobs = [self._logprob(one) for one in shown] if self._logprobs >= 0 else []
        return [Piece(self.number, text, [one.token for one in shown], logprobs), *calls]

    def _rest(self) -> str:
        """What was held back: an unfinished character, the beginning of a stop text. A stop is no longer looked for
        in it, as nothing more follows."""
        text = self._detokenizer.flush()
        if self._stops is None:
            return text
        text, found = self._stops.push(text)
        return text if found else text + self._stops.flush()

    def finished(self, reason: Reason, drafted: int = 0, accepted: int = 0) -> Finished:
        """The last event."""
        called = reason == "stop" and self._tools is not None and self._tools.calls > 0
        return Finished(self.number, "tool_calls" if called else reason, self.tokens, drafted, accepted)

    def _logprob(self, one: Sampled) -> TokenLogprob:
        raw = self._tokenizer.token_bytes(one.token)
        top = [(token, self._tokenizer.token_bytes(token), logprob) for token, logprob in one.top]
        return TokenLogprob(one.token, raw.decode("utf-8", "replace"), raw, one.logprob, top)
