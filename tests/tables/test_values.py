"""Arrow's numbers and booleans as numpy sees them: the same as `Array.to_numpy`, which is not used for its imports."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.tables.values import to_numpy

KINDS = {
    pa.int8(): st.integers(-128, 127),
    pa.uint16(): st.integers(0, 2**16 - 1),
    pa.int64(): st.integers(-(2**52), 2**52),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(st.data())
def test_numbers_are_those_that_arrow_gives_wherever_a_slice_begins(kind, data):
    values = data.draw(st.lists(st.none() | KINDS[kind], max_size=20))
    start = data.draw(st.integers(0, len(values)))
    array = pa.array(values, kind).slice(start, data.draw(st.integers(0, 20)))
    expected = array.to_numpy(zero_copy_only=False)
    np.testing.assert_array_equal(to_numpy(array), expected)
    assert to_numpy(array).dtype == expected.dtype or not len(array)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 40))
def test_booleans_are_those_that_arrow_gives(values, start):
    array = pa.array(values, pa.bool_()).slice(start)
    np.testing.assert_array_equal(to_numpy(array), array.to_numpy(zero_copy_only=False))
    assert to_numpy(array).dtype == bool
