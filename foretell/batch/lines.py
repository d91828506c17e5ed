"""A file of calls of the server's API, one JSON object a line → the calls, or what is wrong with which line. Knows no
tables, so that a server which has no batches needs none.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from foretell.batch.ending import Fault
from foretell.core.errors import ForetellError, InvalidInput

CUSTOM_ID = "custom_id"
MOST_CALLS = 50_000
"""As OpenAI has it."""
MOST_FAULTS = 100
"""More are not listed: whoever mends these finds the others."""

CheckModel = Callable[[str], None]
"""Raises a `ForetellError` where calls of a model cannot be answered here."""


class BadCalls(InvalidInput):
    """The file cannot be run. Mend the lines that `faults` name and upload it again."""

    def __init__(self, faults: list[Fault]) -> None:
        first = faults[0]
        where = f" (line {first.line})" if first.line else ""
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        super().__init__(f"the calls cannot be run: {first.message}{where}{more}")
        self.faults = tuple(faults)


class Call(msgspec.Struct):
    """One line, as OpenAI has it."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


class _Asked(msgspec.Struct):
    model: str


def model_of(path: Path) -> str:
    """The model that the first call names, "" where it names none."""
    with path.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
        try:
            return msgspec.json.decode(msgspec.json.decode(first, type=Call).body, type=_Asked).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""


class CallReader:
    """Reads lines and notes what is wrong with them; nothing more comes of it after the first fault."""

    def __init__(self, endpoint: str, check_model: CheckModel) -> None:
        self.count = 0
        self.faults: list[Fault] = []
        self._endpoint = endpoint
        self._check_model = check_model
        self._lines: dict[str, int] = {}
        self._model = ""

    def note(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        self.faults.append(Fault(code, message, line, param))

    def calls(self, lines: Iterator[bytes]) -> Iterator[Call]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            call = self._call(line, number)
            if len(self.faults) >= MOST_FAULTS:
                return
            self.count += 1
            if self.count > MOST_CALLS:
                self.note("too_many_calls", f"a file holds at most {MOST_CALLS:,} calls; make several of it", number)
                return
            if call is not None and not self.faults:
                yield call

    def _call(self, line: bytes, number: int) -> Call | None:
        try:
            call = msgspec.json.decode(line, type=Call)
            asked = msgspec.json.decode(call.body, type=_Asked)
            line.decode()
        except msgspec.ValidationError as error:
            self.note("invalid_request", f"the line does not fit: {error}", number, _place(str(error)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.note("invalid_json_line", f"the line is not JSON: {error}", number)
        else:
            before = len(self.faults)
            self._check(call, asked, number)
            return call if len(self.faults) == before else None
        return None

    def _check(self, call: Call, asked: _Asked, number: int) -> None:
        if call.method != "POST":
            self.note("invalid_method", f'method is "{call.method}"; write "POST"', number, "method")
        if call.url != self._endpoint:
            told = f'url is "{call.url}", the batch is for "{self._endpoint}"; make a batch for each endpoint'
            self.note("invalid_url", told, number, "url")
        if not call.custom_id:
            self.note("invalid_custom_id", "custom_id is empty; the answer could not be found by it", number, CUSTOM_ID)
        if (first := self._lines.setdefault(call.custom_id, number)) != number:
            told = f'custom_id "{call.custom_id}" is that of line {first} already; give each line its own'
            self.note("duplicate_custom_id", told, number, CUSTOM_ID)
        if not self._model:
            self._model = asked.model
            try:
                self._check_model(asked.model)
            except ForetellError as error:
                code = "model_not_found" if error.http_status == 404 else "invalid_model"
                self.note(code, error.message, number, "body.model")
        elif asked.model != self._model:
            told = f'model is "{asked.model}", in the first line "{self._model}"; make a batch for each model'
            self.note("mismatched_model", told, number, "body.model")


def _place(message: str) -> str | None:
    """The field that a message of msgspec names.

    >>> _place("Object missing required field `custom_id`")
    'custom_id'
    """
    found: Any = message.split("`")
    return found[1].removeprefix("$.") if len(found) > 2 and "field" in found[0] else None
