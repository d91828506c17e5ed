"""Bytes that are no event of the stream are refused alone, with a reason; a schema that does not fit, at once."""

import asyncio
import io
import json

import fastavro
import numpy as np
import pytest

from foretell.core.column_map import ColumnMap
from foretell.core.errors import ConfigError, InvalidInput
from foretell.core.reference import Reference
from foretell.core.tensor import Signature, TensorSpec
from foretell.streams.answering import Plain, Reading
from foretell.streams.asking import Asker
from foretell.streams.formats import open_format
from foretell.streams.message import Message, Partition
from foretell.streams.pace import Pace
from foretell.streams.rows import Columns
from foretell.testing import FakeModel, FakePlane

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [{"name": "x", "type": "float"}, {"name": "k", "type": "string"}],
}
OTHER = {"type": "record", "name": "Event", "fields": [{"name": "x", "type": "string"}]}


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "event.avsc"
    path.write_text(json.dumps(SCHEMA))
    return path


def record(row, schema=SCHEMA) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, row)
    return out.getvalue()


def answer(form, values: list[bytes], key: str = "", most_bytes: int = 1000):
    asker = Asker(FakePlane(FakeModel("m", SIGNATURE, double)), Reference("m"), SIGNATURE, Pace())
    plain = Plain(asker, Reading(form, key, most_bytes), Columns(form, SIGNATURE, ColumnMap()))
    partition = Partition("t/0")
    messages = [Message(v, b"", partition, str(n), str(n + 1), 0) for n, v in enumerate(values)]
    made = asyncio.run(plain.answer(messages))
    outputs = [json.loads(each.value) for each in made.records]
    reasons = {refusal.message.position: refusal.reason for refusal in made.refused}
    return {each["position"]: (each["key"], each["outputs"]["y"]) for each in outputs}, reasons


def double(inputs):
    return {"y": inputs["x"] * np.float32(2)}


@pytest.mark.parametrize("framed", [False, True])
def test_a_record_of_another_schema_is_refused_alone(schema, framed):
    form = open_format("confluent-avro" if framed else "avro", str(schema), ())
    head = b"\0\0\0\0\7" if framed else b""
    good = [head + record({"x": n, "k": f"k{n}"}) for n in (1, 2)]
    wrong = head + record({"x": "a longer text than a float and a string take"}, OTHER)
    answers, reasons = answer(form, [good[0], wrong, good[1]], key="k")
    assert answers == {"0": ("k1", 2.0), "2": ("k2", 4.0)}
    assert "1" in reasons
    assert "Avro record" in reasons["1"]


def test_a_record_without_its_frame_is_refused(schema):
    _, reasons = answer(open_format("confluent-avro", str(schema), ()), [b"\1" + record({"x": 1, "k": ""})])
    assert "not framed" in reasons["0"]


def test_a_message_over_the_limit_is_refused_before_it_is_read():
    form = open_format("json", "", ("x",))
    large = b'{"x": 1, "more": "' + b"a" * 1000 + b'"}'
    answers, reasons = answer(form, [b'{"x": 1}', large, b'{"x": 2}'])
    assert list(answers) == ["0", "2"]
    assert reasons == {"1": f"the message has {len(large):,} bytes, the limit is 1,000"}


def test_a_message_of_just_the_limit_is_taken():
    form, value = open_format("json", "", ("x",)), b'{"x": 1}'
    assert answer(form, [value], most_bytes=len(value))[1] == {}


def test_a_schema_that_lacks_what_the_model_wants_is_refused_before_anything_runs(tmp_path):
    path = tmp_path / "other.avsc"
    path.write_text(json.dumps({**OTHER, "fields": [{"name": "xx", "type": "float"}]}))
    with pytest.raises(InvalidInput, match=r'no column feeds input "x".* Did you mean "xx"'):
        Columns(open_format("avro", str(path), ()), SIGNATURE, ColumnMap())


@pytest.mark.parametrize(
    ("name", "schema", "message"),
    [
        ("avro", "", "needs a schema; name its file with --schema"),
        ("avro", "nowhere.avsc", "there is no file nowhere.avsc"),
        ("json", "some.avsc", "json needs no schema"),
        ("arvo", "", 'unknown format "arvo". Did you mean "avro"'),
    ],
)
def test_a_format_that_cannot_be_read_says_why(name, schema, message):
    with pytest.raises(ConfigError, match=message):
        open_format(name, schema, ())


@pytest.mark.parametrize("text", ["{", '{"type": "string"}', '{"type": "record"}'])
def test_a_file_that_is_no_schema_of_records_is_said(tmp_path, text):
    path = tmp_path / "bad.avsc"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad.avsc"):
        open_format("avro", str(path), ())


def test_bytes_are_base64_in_json_and_what_is_no_base64_is_refused():
    form = open_format("json", "", ("x",))
    rows = [form.decode(b'{"x": {"b64": "AP8="}}'), form.decode(b'{"x": "text"}')]
    assert form.column(rows, "x") == [b"\0\xff", "text"]
    for wrong in (b'{"x": {"b64": "?"}}', b'{"x": {"b64": 7}}'):
        with pytest.raises(InvalidInput, match='field "x": b64 is not base64'):
            form.column([form.decode(wrong)], "x")
