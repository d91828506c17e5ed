"""Targets inside this process: a predictor, or anything with the plane's `infer`."""

from collections.abc import Sequence
from typing import Any, Protocol

from foretell.core.model import Predictor
from foretell.core.reference import Reference
from foretell.core.request import Request, Response
from foretell.core.tensor import Tensors


class Infers(Protocol):
    """The part of the plane that is measured."""

    async def infer(self, reference: Reference, request: Request) -> Response: ...


class PredictorTarget:
    """Calls a predictor directly: the floor that a server is compared with. One call at a time, whatever the
    concurrency. Each element of `inputs` is one request; they are sent in turn.
    """

    def __init__(self, name: str, predictor: Predictor, inputs: Sequence[Tensors]) -> None:
        self.name = name
        self._predictor = predictor
        self._inputs = list(inputs)
        self.rows = predictor.signature.check(self._inputs[0])

    async def open(self) -> None:
        """The predictor is loaded already."""

    async def send(self, index: int) -> None:
        self._predictor.predict(self._inputs[index % len(self._inputs)])

    async def close(self) -> None:
        """The predictor belongs to the caller."""


class PlaneTarget:
    """Asks a plane: what an entrance would ask, without the wire. Each element of `inputs` is one request of
    `rows` rows; they are sent in turn.
    """

    def __init__(self, plane: Infers, reference: Reference, inputs: Sequence[Tensors], rows: int) -> None:
        self.name = str(reference)
        self.rows = rows
        self._plane = plane
        self._reference = reference
        self._inputs = list(inputs)

    async def open(self) -> None:
        """The plane is started already."""

    async def send(self, index: int) -> Any:
        inputs = self._inputs[index % len(self._inputs)]
        await self._plane.infer(self._reference, Request(inputs, self.rows, protocol="bench"))

    async def close(self) -> None:
        """The plane belongs to the caller."""
