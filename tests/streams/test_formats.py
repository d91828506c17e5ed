"""Bytes that are no event of the stream are refused alone, with a reason; a schema that does not fit, at once."""

import asyncio
import io
import json
from pathlib import Path

import fastavro
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

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
from foretell.streams.stateful import Making, Stateful
from foretell.testing import FakeModel, FakePlane
from tests.streams.state_world import load, opened

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


PROTO = """syntax = "proto3";
package shop;
message Event { float x = 1; string k = 2; repeated float list = 3; }
"""


def described(proto: str, folder) -> descriptor_pb2.FileDescriptorSet:
    """What protoc writes."""
    protoc = pytest.importorskip("grpc_tools.protoc")
    (folder / "event.proto").write_text(proto)
    folders = [f"-I{folder}", f"-I{Path(protoc.__file__).with_name('_proto')}"]
    assert protoc.main(["", *folders, f"--descriptor_set_out={folder / 'event.pb'}", "event.proto"]) == 0
    return descriptor_pb2.FileDescriptorSet.FromString((folder / "event.pb").read_bytes())


@pytest.fixture
def shop_event(tmp_path):
    """The class of `shop.Event`; its schema is in tmp_path as event.proto and as event.pb."""
    pool = descriptor_pool.DescriptorPool()
    for file in described(PROTO, tmp_path).file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Event"))


@pytest.mark.parametrize("schema", ["event.proto", "event.pb", "event.pb#shop.Event"])
def test_protobuf_messages_are_answered_and_bytes_that_are_none_are_refused_alone(tmp_path, shop_event, schema):
    form = open_format("protobuf", str(tmp_path / schema), ())
    first, last = (shop_event(x=n, k=f"k{n}").SerializeToString() for n in (1, 2))
    answers, reasons = answer(form, [first, b"\xff\xff\xff", last, b""], key="k")
    assert answers == {"0": ("k1", 2.0), "2": ("k2", 4.0), "3": ("", 0.0)}, "what is not set has its default"
    assert list(reasons) == ["1"]
    assert "not the Protobuf message that the schema describes" in reasons["1"]


def test_repeated_fields_and_whole_events_of_protobuf_are_read(tmp_path, shop_event):
    form = open_format("protobuf", str(tmp_path / "event.pb"), ())
    row = form.decode(shop_event(x=1.5, k="a", list=[1, 2]).SerializeToString())
    assert form.column([row], "list") == [[1.0, 2.0]]
    assert form.event(row) == {"x": 1.5, "k": "a", "list": [1.0, 2.0]}


WHOLE = """syntax = "proto3";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
message Part { int64 n = 1; }
message Event {
  enum Kind { NONE = 0; CARD = 1; }
  int64 id = 1; bytes raw = 2; Kind kind = 3; double x = 4; repeated uint64 many = 5; map<string, int64> named = 6;
  Part part = 7; repeated Part parts = 8; map<string, Part> by_name = 9; optional int32 maybe = 10;
  google.protobuf.Timestamp at = 11; google.protobuf.Int64Value boxed = 12; google.protobuf.Struct free = 13;
}
"""


@pytest.fixture
def whole_event(tmp_path):
    """The format, and the class of its messages."""
    described(WHOLE, tmp_path)
    form = open_format("protobuf", str(tmp_path / "event.proto#Event"), ())
    return form, type(form.decode(b""))


def test_a_whole_event_of_protobuf_has_its_values_as_they_are(whole_event):
    form, event = whole_event
    made = event(id=2**60, raw=b"\xff", kind=1, x=float("inf"), many=[2**63], named={"a": 2**40}, maybe=0)
    made.part.n = made.by_name["b"].n = 2**50
    made.parts.add().n = 7
    made.at.FromJsonString("2026-01-02T03:04:05Z")
    made.boxed.value = 2**55
    made.free.update({"deep": [1, "two"]})
    assert form.event(form.decode(made.SerializeToString())) == {
        "id": 2**60, "raw": b"\xff", "kind": 1, "x": float("inf"), "many": [2**63], "named": {"a": 2**40}, "maybe": 0,
        "part": {"n": 2**50}, "parts": [{"n": 7}], "by_name": {"b": {"n": 2**50}},
        "at": "2026-01-02T03:04:05Z", "boxed": 2**55, "free": {"deep": [1.0, "two"]},
    }  # fmt: skip
    nothing = {"id": 0, "raw": b"", "kind": 0, "x": 0.0, "many": [], "named": {}, "parts": [], "by_name": {}}
    assert form.event(form.decode(b"")) == nothing


def test_an_event_of_protobuf_with_a_time_that_is_none_is_refused_alone(tmp_path, whole_event):
    form, event = whole_event
    good, wrong = event(x=1.0), event(x=2.0)
    wrong.at.seconds = 2**60
    transform = load(tmp_path, "def transform(event, state): return {'x': event['x']}")
    asker = Asker(FakePlane(FakeModel("m", SIGNATURE, double)), Reference("m"), SIGNATURE, Pace())
    making = Making(transform, None)
    stateful = Stateful(asker, Reading(form), making, SIGNATURE, lambda: opened(tmp_path, transform))
    stateful.open()
    values = [each.SerializeToString() for each in (wrong, good)]
    partition = Partition("t/0")
    messages = [Message(v, b"k", partition, str(n), str(n + 1), 0) for n, v in enumerate(values)]
    made = asyncio.run(stateful.answer(messages))
    stateful.close()
    assert [json.loads(each.value)["outputs"]["y"] for each in made.records] == [2.0]
    assert [(each.message.position, 'field "at" is no Timestamp' in each.reason) for each in made.refused] == [
        ("0", True)
    ]


def test_a_protobuf_schema_that_does_not_say_which_message_is_refused(tmp_path):
    described(PROTO + "message Other { int32 n = 1; }", tmp_path)
    with pytest.raises(ConfigError, match="2 messages; write FILE#MESSAGE"):
        open_format("protobuf", str(tmp_path / "event.pb"), ())
    with pytest.raises(ConfigError, match=r'no message "shop.Evnt".* Did you mean "shop.Event"'):
        open_format("protobuf", f"{tmp_path / 'event.pb'}#shop.Evnt", ())


def test_what_a_schema_imports_is_compiled_with_it_and_has_to_be_in_a_descriptor_set(tmp_path):
    stamped = """syntax = "proto3";
    import "google/protobuf/timestamp.proto";
    message Event { google.protobuf.Timestamp at = 1; }
    """
    described(stamped, tmp_path)
    assert open_format("protobuf", str(tmp_path / "event.proto"), ()).fields == ("at",)
    with pytest.raises(ConfigError, match="--include_imports"):
        open_format("protobuf", str(tmp_path / "event.pb"), ())


@pytest.mark.parametrize(
    ("name", "text"), [("event.proto", "message {"), ("event.pb", "no descriptors"), ("none.pb", "")]
)
def test_a_file_that_is_no_protobuf_schema_is_said(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        open_format("protobuf", str(tmp_path / name), ())
