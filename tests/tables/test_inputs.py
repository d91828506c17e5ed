"""Columns become tensors: every form that a column may have, and every way in which a row may not fit."""

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.core.column_map import parse_column_map
from foretell.core.columns import to_tensors
from foretell.core.errors import InvalidInput
from foretell.core.tensor import Signature, TensorSpec
from foretell.tables.inputs import Inputs, check_columns


def signature(datatype="FP32", *shape, **more):
    return Signature((TensorSpec("x", datatype, (-1, *shape), **more),), ())


def read(column, spec, *maps, **others):
    """The `Inputs` of a table with column x, checked first as a job does."""
    table = pa.table({"x": column, **others})
    columns = parse_column_map(maps).complete(spec, table.column_names)
    check_columns(table.schema, columns, spec)
    return Inputs(table, columns, spec)


def whole(inputs):
    return inputs.take(slice(0, inputs.rows))["x"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1, 2], [3, 4]], pa.list_(pa.float32())),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)),
        pa.array([[1, 2], [3, 4]], pa.large_list(pa.int16())),
        pa.array([[0, 0], [1, 2], [3, 4]], pa.list_(pa.float64(), 2))[1:],
        pa.chunked_array([[[1.0, 2.0]], [[3.0, 4.0]]]),
    ],
)
def test_a_list_of_any_kind_feeds_a_vector(column):
    found = whole(read(column, signature("FP32", 2)))
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 2], [3, 4]]


def test_nested_and_flat_lists_feed_a_matrix():
    nested = pa.array([[[1, 2, 3], [4, 5, 6]]], pa.list_(pa.list_(pa.float32())))
    flat = pa.array([[1, 2, 3, 4, 5, 6]], pa.list_(pa.float32()))
    tensor = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2, 3]), pa.array([[1, 2, 3, 4, 5, 6]], pa.list_(pa.float32(), 6))
    )
    for column in (nested, flat, tensor):
        assert whole(read(column, signature("FP32", 2, 3))).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_scalar_columns_feed_a_vector_in_the_order_they_are_named():
    found = read([1, 2], signature("FP32", 3), "c,x,b=x", b=[3.5, 4.5], c=[True, False])
    assert whole(found).tolist() == [[1, 1, 3.5], [0, 2, 4.5]]


def test_one_scalar_column_feeds_a_vector_of_one():
    assert whole(read([1.5, 2.5], signature("FP32", 1))).tolist() == [[1.5], [2.5]]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.string_view()])
def test_text_feeds_bytes_and_its_lengths_are_known(kind):
    inputs = read(pa.array(["é", "abc"], kind), signature("BYTES"))
    assert whole(inputs).tolist() == ["é".encode(), b"abc"]
    assert inputs.lengths.tolist() == [2, 3]


def test_categories_are_text():
    assert whole(read(pa.array(["a", "b", "a"]).dictionary_encode(), signature("BYTES"))).tolist() == [b"a", b"b", b"a"]


def test_lists_of_any_length_feed_a_variable_axis_and_equal_ones_are_taken_together():
    inputs = read(pa.array([[1, 2], [3], [4, 5]], pa.list_(pa.int32())), signature("INT64", -1))
    assert inputs.ragged
    assert inputs.lengths.tolist() == [2, 1, 2]
    assert inputs.take(np.array([2, 0]))["x"].tolist() == [[4, 5], [1, 2]]


def test_a_model_of_one_row_at_a_time_gets_it_with_its_axis():
    fixed = Signature((TensorSpec("x", "FP32", (1, 2)),), ())
    inputs = read(pa.array([[1, 2], [3, 4]], pa.list_(pa.float32())), fixed)
    assert inputs.take(slice(1, 2))["x"].shape == (1, 1, 2)


ROW_FAULTS = [
    ([1, None, 3], "INT64", (), "null, the model expects INT64"),
    ([1, 300, 3], "INT8", (), r"INT8 cannot hold \(-128 … 127\)"),
    (["a", None, "c"], "BYTES", (), "null, the model expects BYTES"),
    ([[1.0], None, [3.0]], "FP32", (1,), "null, the model expects a list of 1"),
    ([[1.0, 2.0], [1.0], [3.0, 4.0]], "FP32", (2,), "a list of another length than 2"),
    ([[1, 2], [1, None], [3, 4]], "INT32", (2,), r"null, the model expects INT32 \(inside the list\)"),
    ([[1, 2], [1, 2**40], [3, 4]], "INT32", (2,), "cannot hold"),
    ([[[1.0], [2.0]], [[1.0], []], [[3.0], [4.0]]], "FP32", (2, 1), "another length than 1"),
    ([[1, 2], [], [3]], "INT64", (-1,), "an empty list"),
    ([[1, 2], [None], [3]], "INT64", (-1,), "null, the model expects INT64"),
    ([["a"], [None], ["b"]], "BYTES", (1,), "null, the model expects BYTES"),
]


@pytest.mark.parametrize(("column", "datatype", "shape", "says"), ROW_FAULTS)
def test_a_row_that_does_not_fit_is_named_and_the_others_stay(column, datatype, shape, says):
    inputs = read(pa.array(column), signature(datatype, *shape))
    assert inputs.good().tolist() == [True, False, True]
    (reason,) = inputs.reasons().values()
    assert list(inputs.reasons()) == [1]
    assert reason.startswith('column "x": ')
    assert re.search(says, reason)
    assert len(inputs.take(np.array([0]))["x"]) == 1


def test_null_among_floating_point_numbers_is_nan_as_it_is_online():
    spec = signature("FP32", 2)
    found = whole(read(pa.array([[1.0, None], [None, 2.0]]), spec))
    np.testing.assert_array_equal(found, to_tensors({"x": [[1.0, None], [None, 2.0]]}, spec)["x"])


def test_a_model_that_refuses_nan_gets_none():
    inputs = read(pa.array([1.0, None, float("nan"), float("inf"), 2.0]), signature("FP32", allow_nan=False))
    assert inputs.good().tolist() == [True, False, False, False, True]
    assert "which this model refuses" in inputs.reasons()[3]


WRONG_COLUMNS = [
    (["a"], "FP32", (), "holds string, the model expects FP32"),
    ([1.5], "INT64", (), "holds double, the model expects INT64"),
    ([1], "BYTES", (), "holds int64, the model expects BYTES"),
    ([1], "BOOL", (), "holds int64, the model expects BOOL"),
    ([[1.0]], "FP32", (), "lists 1 deep, the model expects one value a row"),
    ([1.0], "FP32", (2,), "single values, the model expects 2 values a row"),
    ([[[1.0]]], "FP32", (1,), "lists 2 deep"),
    ([["a"]], "FP32", (1,), "holds string"),
    ([1.0], "FP32", (-1, -1), "several variable axes"),
]


@pytest.mark.parametrize(("column", "datatype", "shape", "says"), WRONG_COLUMNS)
def test_a_column_that_can_never_fit_is_refused_as_a_whole(column, datatype, shape, says):
    with pytest.raises(InvalidInput, match=says):
        read(pa.array(column), signature(datatype, *shape))


def test_columns_that_make_no_vector_of_the_right_size_are_refused():
    with pytest.raises(
        InvalidInput, match=r"2 columns are mapped to input x FP32\[\?, 3\], which takes 3 values a row"
    ):
        read([1.0], signature("FP32", 3), "x,b=x", b=[1.0])
    with pytest.raises(InvalidInput, match="only scalar columns can be joined"):
        read([1.0], signature("FP32", 2), "x,b=x", b=[[1.0]])


def test_a_model_without_rows_is_refused():
    with pytest.raises(InvalidInput, match="no row axis"):
        read([1.0], Signature((TensorSpec("x", "FP32", (3, 2)),), ()))


@given(
    st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(-(2**40), 2**40)), max_size=4)), max_size=8)
)
def test_every_row_is_either_named_or_exactly_what_was_written(rows):
    inputs = read(pa.array(rows, pa.list_(pa.int64())), signature("INT32", 2))
    good, reasons = inputs.good(), inputs.reasons()
    for at, row in enumerate(rows):
        fits = row is not None and len(row) == 2 and all(v is not None and -(2**31) <= v < 2**31 for v in row)
        assert good[at] == fits == (at not in reasons)
        if fits:
            assert inputs.take(slice(at, at + 1))["x"].tolist() == [row]
