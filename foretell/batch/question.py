"""What a job asks of a model, before one is loaded: which columns are read, which are made, and whether they fit."""

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from foretell.batch.layout import Layout
from foretell.batch.prompts import PromptQuestion
from foretell.batch.readers import CONTENT
from foretell.batch.source import Source
from foretell.batch.spec import JobSpec
from foretell.core.column_map import ColumnMap
from foretell.core.errors import InvalidInput
from foretell.core.tensor import Signature
from foretell.store.manifest import Manifest, TextStep
from foretell.tables.inputs import check_columns
from foretell.tables.outputs import column_type


class Question(Protocol):
    """Columns that are read and columns that are made of each row."""

    @property
    def reads(self) -> Sequence[str]: ...

    @property
    def makes(self) -> pa.Schema: ...

    def check(self, schema: pa.Schema) -> None:
        """Raise `InvalidInput` if a table of this schema cannot be asked about."""


class RowQuestion:
    """Of a model that predicts: `columns` feed its inputs, its outputs become columns. `pads`: its texts are padded to
    the longest of a request, so that rows of similar length belong together.
    """

    def __init__(self, signature: Signature, columns: ColumnMap, pads: bool = False) -> None:
        self.signature = signature
        self.columns = columns
        self.pads = pads
        for spec in signature.outputs:
            if not spec.shape or spec.shape[0] not in (-1, 1):
                raise InvalidInput(f"output {spec} has no row axis: its values belong to no row of a table")

    @property
    def reads(self) -> Sequence[str]:
        return self.columns.columns

    @property
    def makes(self) -> pa.Schema:
        return pa.schema([(spec.name, column_type(spec)) for spec in self.signature.outputs])

    def check(self, schema: pa.Schema) -> None:
        check_columns(schema, self.columns.complete(self.signature, schema.names), self.signature)


def question_of(spec: JobSpec, manifest: Manifest, source: Source, schema: pa.Schema) -> RowQuestion | PromptQuestion:
    """What `spec` asks of a model. Raises `InvalidInput` where the first file's columns do not fit it."""
    generates = manifest.runtime == "llm"
    if generates != (spec.prompting is not None):
        raise InvalidInput(
            f"{spec.model} is a language model: say what to ask it with --prompt 'text with {{column}}'"
            if generates
            else f"{spec.model} predicts rows, --prompt is for language models; map columns with --map instead"
        )
    if spec.prompting is not None:
        asked = PromptQuestion(spec.prompting)
        asked.check(schema)
        return asked
    signature = manifest.signature
    columns = spec.reading.columns
    texts = [each.name for each in signature.inputs if each.datatype == "BYTES"]
    if source.of_files and not texts:
        raise InvalidInput(
            f"each row is a whole file here, and {spec.model} takes {', '.join(map(str, signature.inputs))}. Add it"
            ' again with --config and a step that turns files into that (kind = "image" decodes pictures;'
            " docs/packages.md), or give tables"
        )
    if source.of_files and len(texts) == 1 and texts[0] not in columns.feeds:
        columns = ColumnMap({**columns.feeds, texts[0]: (CONTENT,)})
    pads = any(isinstance(step, TextStep) for step in manifest.transform.before)
    question = RowQuestion(signature, columns.complete(signature, schema.names), pads)
    question.check(schema)
    return question


def layout_of(spec: JobSpec, question: Question, source: Source, schema: pa.Schema) -> Layout:
    """What the output of `spec` looks like. Raises `InvalidInput` where --where, --keep or --label do not fit."""
    return Layout(spec, schema, question.reads, question.makes, source.folders)
