"""What a transform returns for one odd event, which fails alone: those beside it are answered, of any partition."""

import asyncio
import json

import numpy as np
import pytest

from foretell.core.errors import InvalidInput
from foretell.core.reference import Reference
from foretell.core.tensor import Signature, TensorSpec
from foretell.streams.answering import Reading
from foretell.streams.asking import Asker
from foretell.streams.fit import ModelFit
from foretell.streams.json_format import JsonFormat
from foretell.streams.message import Message, Partition
from foretell.streams.pace import Pace
from foretell.streams.stateful import Making, Stateful
from foretell.testing import FakeModel, FakePlane
from tests.streams.state_world import load, opened

ONE = "def transform(event, state): return {'x': event['x']}"
BATCH = "def transform_batch(events, state): return {'x': [x for x in events['x']]}"
COUNTING = """from foretell.streams.windows import tumbling
seen = tumbling("1h")
def transform(event, state):
    return {"x": [state.add(seen, 1).count, *event["x"]]}
"""


def signature(datatype, *shape):
    return Signature((TensorSpec("x", datatype, shape),), (TensorSpec("y", "FP64", (-1,)),))


def summed(inputs):
    x = inputs["x"].astype(np.float64)
    return {"y": x.reshape(len(x), -1).sum(axis=1)}


def answer(folder, text, model, values):
    """What becomes of `values`, which come in turns from as many partitions as they are lists."""
    transform = load(folder, text)
    asker = Asker(FakePlane(FakeModel("m", model, summed)), Reference("m"), model, Pace())
    stateful = Stateful(
        asker, Reading(JsonFormat(), "k"), Making(transform, None), model, lambda: opened(folder, transform)
    )
    stateful.open()
    messages = []
    for number, rows in enumerate(values):
        partition = Partition(f"t/{number}")
        messages += [
            Message(json.dumps({"k": "a", "x": row}).encode(), b"", partition, str(at), str(at + 1), 1_000_000)
            for at, row in enumerate(rows)
        ]
    made = asyncio.run(stateful.answer(messages))
    stateful.close()
    sums = [(each.message.partition.name, json.loads(each.value)["outputs"]["y"]) for each in made.records]
    return sums, {f"{each.message.partition.name}@{each.message.position}": each.reason for each in made.refused}


@pytest.mark.parametrize("text", [ONE, BATCH], ids=["one event", "a micro-batch"])
@pytest.mark.parametrize("odd_at", [0, 1, 2])
@pytest.mark.parametrize(
    ("datatype", "odd", "reason"),
    [
        ("FP32", [1.0], r"of shape \[1\] for an event, the model expects \[2\]"),
        ("FP32", ["9", 3.0], "the model expects FP32"),
        ("INT64", [1.5, 1], "the model expects INT64"),
        ("INT32", [2**40, 1], "which INT32 cannot"),
        ("FP32", [[1], [2, 3]], "no array|ragged|cannot be read"),
        ("FP32", [10**400, 1], "cannot be read as FP32"),
        ("FP32", {"a": 1}, "x"),
    ],
    ids=["shape", "text", "float", "size", "ragged", "huge", "object"],
)
def test_an_odd_event_fails_alone_wherever_it_stands(tmp_path, text, odd_at, datatype, odd, reason):
    rows = [[1, 2], [3, 4]]
    rows.insert(odd_at, odd)
    sums, refused = answer(tmp_path, text, signature(datatype, -1, 2), [rows, [[5, 6]]])
    assert sums == [("t/0", 3.0), ("t/0", 7.0), ("t/1", 11.0)]
    assert list(refused) == [f"t/0@{odd_at}"]
    with pytest.raises(InvalidInput, match=reason):
        raise InvalidInput(refused[f"t/0@{odd_at}"])


def test_an_odd_event_is_in_no_window_and_the_others_are(tmp_path):
    sums, refused = answer(tmp_path, COUNTING, signature("FP32", -1, 2), [[["no"], [0], [0, 0], [0]]])
    assert sums == [("t/0", 1.0), ("t/0", 2.0)]
    assert list(refused) == ["t/0@0", "t/0@2"]


def test_partitions_whose_rows_differ_where_the_model_leaves_it_open_are_all_answered(tmp_path):
    sums, refused = answer(tmp_path, ONE, signature("FP32", -1, -1), [[[1, 2], [3, 4]], [[5]], [[6, 7]]])
    assert sorted(sums) == [("t/0", 3.0), ("t/0", 7.0), ("t/1", 5.0), ("t/2", 13.0)]
    assert refused == {}


@pytest.mark.parametrize(
    ("made", "reason"),
    [("{'z': 1, 'x': event['x']}", 'returned "z". Known: x.'), ("{}", 'returned no "x"; the model expects x FP32[?]')],
)
def test_other_inputs_than_those_of_the_model_are_named(tmp_path, made, reason):
    text = f"def transform(event, state): return {made} if event['x'] else {{'x': 0}}"
    sums, refused = answer(tmp_path, text, signature("FP32", -1), [[1, 0, 1]])
    assert sums == [("t/0", 0.0)]
    assert list(refused) == ["t/0@0", "t/0@2"]
    assert refused["t/0@0"].endswith(reason)


def test_text_is_kept_as_it_is_and_numbers_are_none():
    fit = ModelFit(signature("BYTES", -1, 2))
    assert fit({"x": [["a", "b\0"]]}, 1)["x"].tolist() == [[b"a", b"b\0"]]
    assert fit({"x": np.array([["a", "b"]])}, 1)["x"].tolist() == [[b"a", b"b"]]
    with pytest.raises(InvalidInput, match="give text or bytes, not float"):
        fit({"x": [["9", 3.0]]}, 1)


def test_a_model_that_takes_no_rows_gets_an_event_a_request():
    fit = ModelFit(Signature((TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),)))
    assert fit({"x": [1, 2]}, 2)["x"].tolist() == [[1.0], [2.0]], "a scalar stands for a request"
    assert fit({"x": [[1], [2]]}, 2)["x"].tolist() == [[1.0], [2.0]]
    with pytest.raises(InvalidInput, match=r"of shape \[2\] for an event, the model expects \[1\]"):
        fit({"x": [[1, 2]]}, 1)


def test_inputs_that_come_from_elsewhere_are_not_asked_of_the_transform():
    both = Signature((TensorSpec("x", "FP32", (-1,)), TensorSpec("state", "FP32", (-1,))), ())
    assert list(ModelFit(both, {"state"})({"x": [1]}, 1)) == ["x"]
