"""Rows → answers of one model by the plane. A row that cannot be answered is named alone; faults of the service are
waited out. Knows no format and no broker.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

from foretell.core.errors import InvalidInput, ModelFailed, NotReady, Overloaded, ReplicaCrashed
from foretell.core.reference import Reference
from foretell.core.request import Request, Response
from foretell.core.tensor import Signature, Tensors
from foretell.streams.pace import Pace
from foretell.streams.retry import Backoff

PROTOCOL = "stream"
"""How these requests are called in observations."""
BLAMED = (InvalidInput, ModelFailed, ReplicaCrashed)
"""Errors that a row can be the cause of."""
ODD = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)
"""What conversions raise for values that nobody thought of; one of them must not end the stream."""
CHANCES = 3
"""How often a row is tried alone on which the model failed."""


class Door(Protocol):
    """What is needed of the plane."""

    async def infer(self, reference: Reference, request: Request) -> Response: ...


class Piece(NamedTuple):
    """Rows from `start` on that were answered together."""

    start: int
    stop: int
    response: Response

    @property
    def model(self) -> str:
        return f"{self.response.model}@{self.response.version}"


class Answers(NamedTuple):
    """What became of the rows of one question: pieces in the order of the rows, and why others have no answer."""

    pieces: list[Piece]
    wrong: dict[int, str]


class Asker:
    """Asks one model. `batchable`: it takes many rows at once; otherwise each row is a request of its own."""

    def __init__(
        self, plane: Door, reference: Reference, signature: Signature, pace: Pace, backoff: Backoff | None = None
    ) -> None:
        self.batchable = signature.batchable
        self.pace = pace
        self._signature = signature
        self._plane = plane
        self._reference = reference
        self._backoff = backoff or Backoff()

    async def ask(self, rows: int, inputs_of: Callable[[slice], Tensors]) -> Answers:
        """`inputs_of` gives the inputs of some of the rows, or raises `InvalidInput`; then it is asked for fewer."""
        wrong: dict[int, str] = {}
        if not rows:
            return Answers([], wrong)
        if self.batchable:
            return Answers(await self._ask(slice(0, rows), inputs_of, wrong), wrong)
        alone = [self._ask(slice(at, at + 1), inputs_of, wrong) for at in range(rows)]
        return Answers([piece for pieces in await asyncio.gather(*alone) for piece in pieces], wrong)

    async def _ask(self, part: slice, inputs_of: Callable[[slice], Tensors], wrong: dict[int, str]) -> list[Piece]:
        """Halves what fails until the row to blame is alone."""
        rows = part.stop - part.start
        try:
            inputs = self._inputs(part, inputs_of)
            response = await self._infer(inputs, rows)
        except BLAMED as error:
            if rows == 1:
                wrong[part.start] = error.message
                return []
        else:
            self.pace.observe(rows, response.timing.compute_s)
            return [Piece(part.start, part.stop, response)]
        middle = (part.start + part.stop) // 2
        first = await self._ask(slice(part.start, middle), inputs_of, wrong)
        return first + await self._ask(slice(middle, part.stop), inputs_of, wrong)

    def _inputs(self, part: slice, inputs_of: Callable[[slice], Tensors]) -> Tensors:
        """Those of `part`, checked. Raises `InvalidInput`."""
        try:
            inputs = inputs_of(part)
            self._signature.check(inputs)
        except ODD as error:
            raise InvalidInput(f"the event cannot be read ({type(error).__name__}: {error})") from error
        return inputs

    async def _infer(self, inputs: Tensors, rows: int) -> Response:
        """What is the service's own fault is tried for ever, what may be the row's a few times, and that alone."""
        chances = CHANCES if rows == 1 else 1
        for wait_s in self._backoff.waits():
            try:
                return await self._plane.infer(self._reference, Request(inputs, rows, protocol=PROTOCOL, whole=True))
            except (ModelFailed, ReplicaCrashed):
                chances -= 1
                if not chances:
                    raise
            except (Overloaded, NotReady):
                pass
            await asyncio.sleep(wait_s)
        raise AssertionError("waits() never ends")
