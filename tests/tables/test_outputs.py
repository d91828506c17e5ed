"""Outputs become columns: scalars, strings and lists as deep as a row has axes, and the way back gives the same."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from foretell.core.column_map import ColumnMap
from foretell.core.tensor import DTYPES, Signature, TensorSpec
from foretell.tables.inputs import Inputs
from foretell.tables.outputs import column_type, text_faults, to_column


@pytest.mark.parametrize(
    ("values", "datatype", "kind"),
    [
        ([1, 2], "INT64", pa.int64()),
        ([True, False], "BOOL", pa.bool_()),
        ([b"cat", "größe".encode()], "BYTES", pa.string()),
        ([[1.5, 2], [3, 4]], "FP32", pa.list_(pa.float32())),
        ([[[1], [2]], [[3], [4]]], "FP64", pa.list_(pa.list_(pa.float64()))),
        ([[b"a", b"b"]], "BYTES", pa.list_(pa.string())),
        ([[], []], "FP32", pa.list_(pa.float32())),
    ],
)
def test_an_output_becomes_a_column_of_its_form(values, datatype, kind):
    array = np.array(values, dtype=DTYPES[datatype])
    spec = TensorSpec("y", datatype, (-1, *array.shape[1:]))
    column = to_column(array, spec)
    column.validate(full=True)
    assert column.type == kind == column_type(spec)
    assert column.to_pylist() == [_text(value) for value in values]


def _text(value):
    if isinstance(value, list):
        return [_text(v) for v in value]
    return value.decode() if isinstance(value, bytes) else value


def test_bytes_that_are_no_text_are_found():
    values = np.array([b"ok", b"\xff\xfe", "é".encode(), b""], dtype=object)
    assert text_faults(values).tolist() == [False, True, False, False]
    assert text_faults(np.array([[b"a", b"b"], [b"a", b"\xff"]], dtype=object)).tolist() == [False, True]


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=4)))
def test_a_vector_column_feeds_the_same_vector_again(values):
    spec = TensorSpec("x", "FP32", (-1, *values.shape[1:]))
    table = pa.table({"x": to_column(values, spec)})
    again = Inputs(table, ColumnMap({"x": ("x",)}), Signature((spec,), ())).take(slice(0, len(values)))["x"]
    np.testing.assert_array_equal(again, values)
