"""One part from its rows to its files, by whoever has the model: everything but the record, which only the holder of
the job's lease writes.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import pyarrow as pa

from foretell.batch.layout import Layout
from foretell.batch.output import OutputFolder
from foretell.batch.part import Part, PartRange, Scored
from foretell.batch.protocol import ERRORS, PartKey, Record, commit_steps, part_name
from foretell.batch.question import Question
from foretell.batch.scoring import Scorer
from foretell.batch.source import Source
from foretell.batch.spec import JobSpec, OutputFormat
from foretell.batch.tuning import Sizes
from foretell.store.job import JobPart

WINDOW = 3
"""Parts in memory: one is read, one scored, one written."""


class Done(msgspec.Struct, frozen=True):
    """A part whose files are in place, with the record still to be written. `reason`: why one of its rows failed."""

    record: JobPart
    reason: str = ""


class Crew(Protocol):
    """Who does the parts of a job. `width`: how many of them at a time."""

    question: Question

    @property
    def width(self) -> int: ...

    async def sizes(self, table: pa.Table, row_bytes: float) -> Sizes:
        """How many rows a request and a part should have, tried on some rows."""

    def parts(
        self, layout: Layout, part_rows: int, rows: Sequence[int | None], done: Mapping[PartKey, object]
    ) -> Iterator[Part | PartRange]:
        """The parts that are not done, in order. Blocks while it reads; one thread at a time."""

    async def do(self, layout: Layout, part: Part | PartRange, batch_rows: int) -> Done: ...


class Work:
    """Does parts with a scorer, on a machine that sees the input and the output folder."""

    def __init__(self, spec: JobSpec, attempt: int, source: Source, scorer: Scorer) -> None:
        self._spec = spec
        self._attempt = attempt
        self._source = source
        self._scorer = scorer
        self._output = OutputFolder(Path(spec.writing.folder))

    async def do(self, layout: Layout, part: Part | PartRange, batch_rows: int, again: int = 0) -> Done:
        """`again`: how often somebody else has begun this part in the same run of the job."""
        if isinstance(part, PartRange):
            part = await asyncio.to_thread(self._source.part, layout, part)
        table = await asyncio.to_thread(layout.filtered, part.table, part.start)
        scored = await self._scorer.score(table, batch_rows)
        record = await asyncio.to_thread(self.write, layout, part, table, scored, again)
        return Done(record, next(iter(scored.failed.values()), ""))

    def write(self, layout: Layout, part: Part, table: pa.Table, scored: Scored, again: int) -> JobPart:
        """Put in place what came of `table`, the rows of the part that the filter let through."""
        file = self._source.files[part.key.file]
        form = self._spec.writing.format
        contents: dict[str, tuple[pa.Table, OutputFormat]] = {}
        answered = table.num_rows - len(scored.failed)
        if answered:
            name = part_name(part.key, file.folder, form)
            contents[name] = (layout.output(table, file.path, scored), form)
        if scored.failed:
            name = part_name(part.key, ERRORS, "jsonl")
            contents[name] = (layout.errors(table, part.start, file.path, scored), "jsonl")
        for step in commit_steps(part.key, contents, self._attempt, again):
            if not isinstance(step, Record):
                self._output.take(step, contents)
        tally = layout.tally(table, scored)
        return JobPart(
            file=part.key.file,
            part=part.key.part,
            names=tuple(contents),
            read=part.table.num_rows,
            rows=answered,
            errors=len(scored.failed),
            size=self._output.size(tuple(contents)),
            compute_s=scored.compute_s,
            dollars=scored.dollars,
            measures=msgspec.json.encode(tally).decode() if tally else "",
        )


class LocalCrew:
    """This process: reads one part after the other, while others are scored and written."""

    width = WINDOW

    def __init__(self, spec: JobSpec, attempt: int, source: Source, scorer: Scorer) -> None:
        self.question = scorer.question
        self._source = source
        self._scorer = scorer
        self._work = Work(spec, attempt, source, scorer)

    async def sizes(self, table: pa.Table, row_bytes: float) -> Sizes:
        return await self._scorer.sizes(table, row_bytes)

    def parts(
        self, layout: Layout, part_rows: int, rows: Sequence[int | None], done: Mapping[PartKey, object]
    ) -> Iterator[Part | PartRange]:
        return self._source.parts(layout, part_rows, rows, done)

    async def do(self, layout: Layout, part: Part | PartRange, batch_rows: int) -> Done:
        return await self._work.do(layout, part, batch_rows)
