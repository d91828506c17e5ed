"""Rows that are calls of the server's own API → its answers, as they would have come online. Knows no API's shape: what
asks is handed in.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import pyarrow as pa

from foretell.batch.calls import BODY
from foretell.batch.ending import Spent
from foretell.batch.part import Scored
from foretell.batch.scoring import together
from foretell.batch.tuning import Sizes
from foretell.core.errors import InvalidInput
from foretell.tables.arrays import texts

RESPONSE = "response"
"""The column of answers, JSON texts."""
OK = 200

Ask = Callable[[str, bytes, str], Awaitable[tuple[int, bytes]]]
"""Endpoint, document and the id of this call → status and document."""


class CallQuestion:
    """Every row is a document; its answer is one as well."""

    reads: Sequence[str] = (BODY,)
    makes = pa.schema([(RESPONSE, pa.string())])

    def check(self, schema: pa.Schema) -> None:
        if BODY not in schema.names:
            raise InvalidInput(f'there is no column "{BODY}"')


class CallScorer:
    """Asks for one endpoint. `width`: calls under way at a time; `spent` tells what the call of an id took.

    An answer that is not `OK` is a row that failed; its reason is the answer.
    """

    def __init__(self, endpoint: str, ask: Ask, width: int, spent: Callable[[str], Spent]) -> None:
        self.question = CallQuestion()
        self._endpoint = endpoint
        self._ask = ask
        self._width = width
        self._slots = asyncio.Semaphore(width)
        self._spent = spent

    async def sizes(self, table: pa.Table, row_bytes: float) -> Sizes:
        """A part has as many calls as run at a time: others are read ahead, and an early end costs little."""
        return Sizes(1, self._width)

    async def score(self, table: pa.Table, batch_rows: int) -> Scored:
        bodies = table.column(BODY).to_pylist()
        answers = await together(self._answer(body) for body in bodies)
        failed = {row: told for row, (status, told, _) in enumerate(answers) if status != OK}
        answered = [told for status, told, _ in answers if status == OK]
        compute_s = sum(spent.compute_s for _, _, spent in answers)
        dollars = sum(spent.dollars for _, _, spent in answers)
        return Scored({RESPONSE: texts(answered)}, failed, compute_s, dollars)

    async def _answer(self, body: str) -> tuple[int, str, Spent]:
        name = uuid.uuid4().hex
        try:
            async with self._slots:
                status, document = await self._ask(self._endpoint, body.encode(), name)
        finally:
            spent = self._spent(name)  # also where nobody wants to know: it is kept until somebody asks
        told = {"status_code": status, "request_id": name, "body": msgspec.Raw(document)}
        return status, msgspec.json.encode(told).decode(), spent
