"""What the HTTP entrance asks of the plane, as protocols, so that tests hand in a fake."""

from collections.abc import AsyncGenerator
from typing import Protocol

from foretell.core.errors import ForetellError
from foretell.core.generation import Event, GenerateRequest
from foretell.core.reference import Reference
from foretell.core.request import Request, Response
from foretell.core.tensor import Signature
from foretell.plane.info import IndexEntry, ModelInfo, VersionStatistics


class Inference(Protocol):
    """The half that answers requests. `refused` tells of one that could not even be read. The others raise
    `NotFound` for references that are not served.

    `generate` answers for models tagged "generation". Nothing happens before the first event is asked for; a refusal
    (`NotFound`, `InvalidInput`, `Overloaded`, …) is raised there, a failure in mid-stream by the event it replaces.
    Closing it (`aclose`; use `contextlib.aclosing`) or cancelling whoever waits for an event cancels the request.
    """

    async def infer(self, reference: Reference, request: Request) -> Response: ...
    def generate(self, reference: Reference, request: GenerateRequest) -> AsyncGenerator[Event, None]: ...
    def refused(self, reference: Reference, error: ForetellError, protocol: str) -> None: ...
    def signature(self, reference: Reference) -> Signature: ...
    def describe(self, reference: Reference) -> ModelInfo: ...
    def models(self) -> list[ModelInfo]: ...
    def ready(self, reference: Reference | None = None) -> bool: ...


class Management(Protocol):
    """The half that loads, lists and counts."""

    async def load(self, reference: Reference) -> None: ...
    async def unload(self, name: str) -> None: ...
    def index(self) -> list[IndexEntry]: ...
    def statistics(self, reference: Reference | None = None) -> list[VersionStatistics]: ...


class Door(Inference, Management, Protocol):
    """The plane as the HTTP entrance sees it."""
