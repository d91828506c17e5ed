"""Generations in this process: takes the steps of a generator as somebody asks for events. Starts nothing."""

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from foretell.core.errors import ForetellError, InvalidInput, did_you_mean
from foretell.core.generation import Chat, Event, Finished, GenerateRequest, Sampling, Stops
from foretell.core.model import Generator

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""Text to continue, its token ids, or the messages of a conversation."""


class Speaker:
    """Lets several generations run over one generator; whoever waits for an event takes the steps for all."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._numbers = itertools.count(1)
        self._heard: dict[int, deque[Event | ForetellError]] = {}

    def events(self, request: GenerateRequest) -> Iterator[Event]:
        """The events of one request, from the first `next` on. Raises a `ForetellError`; closing cancels."""
        number = next(self._numbers)
        left = request.n
        heard = self._heard[number] = deque()
        try:
            self._generator.submit(number, request)
            while left:
                while not heard:
                    self._step()
                event = heard.popleft()
                if isinstance(event, ForetellError):
                    raise event
                left -= isinstance(event, Finished)
                yield event
        finally:
            del self._heard[number]
            self._generator.cancel(number)

    def close(self) -> None:
        """Free the model."""
        self._generator.close()

    def _step(self) -> None:
        for number, event in self._generator.step():
            if number in self._heard:
                self._heard[number].append(event)


_OF_STOPS = ("max_tokens", "min_tokens", "stop", "ignore_eos")


def request_of(prompt: Prompt, options: Mapping[str, Any]) -> GenerateRequest:
    """A request from what people write. `options` are fields of `Sampling` and of `Stops`.

    Raises `InvalidInput` that names the option.
    """
    known = [*_OF_STOPS, *Sampling.__struct_fields__]
    for name in options:
        if name not in known:
            raise InvalidInput(f'unknown option "{name}". {did_you_mean(name, known)}')
    stops = {name: value for name, value in options.items() if name in _OF_STOPS}
    if isinstance(stops.get("stop"), str):
        stops["stop"] = (stops["stop"],)
    sampling = {name: value for name, value in options.items() if name not in _OF_STOPS}
    try:
        return GenerateRequest(
            _prompt(prompt), msgspec.convert(sampling, Sampling), msgspec.convert(stops, Stops), protocol="python"
        )
    except msgspec.ValidationError as error:
        raise InvalidInput(f"an option of generate has the wrong type: {error}") from None


def _prompt(given: Prompt) -> str | list[int] | Chat:
    if isinstance(given, str):
        return given
    if given and isinstance(given[0], Mapping):
        return Chat([dict(message) for message in given if isinstance(message, Mapping)])
    return [int(token) for token in given if not isinstance(token, Mapping)]
