"""A filter as people write it lets exactly those rows through that Python would."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.core.errors import InvalidInput
from foretell.tables.where import Where

TABLE = pa.table({"a": [1, 2, 3, None], "b": ["x", "y", "x", "z"], "c": [0.5, 1.5, 2.5, 3.5]})


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a >= 2", [1, 2]),
        ("1 < a < 3", [1]),
        ("a == 1 or b == 'z'", [0, 3]),
        ("b in ['x', 'z'] and not a == 3", [0]),
        ("b not in ['x']", [1, 3]),
        ("a is None", [3]),
        ("a is not None and c > 1", [1, 2]),
        ("(a > 1) & (b != 'y') | (c < 1)", [0, 2]),
        ("a + c * 2 > 4", [1, 2]),
        ("a - -1 == 2", [0]),
        ("~(b == 'x')", [1, 3]),
    ],
)
def test_a_filter_lets_its_rows_through(text, rows):
    table = TABLE.append_column("row", pa.array(range(4)))
    where = Where(text)
    where.check(table.schema)
    assert where.apply(table).column("row").to_pylist() == rows
    assert set(where.columns) <= {"a", "b", "c"}


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.timestamp("s"), pa.date32()])
def test_texts_beside_dates_and_times_are_such(kind):
    days = pa.array(["2026-01-09", "2026-01-10", None, "2026-02-01"]).cast(kind)
    table = pa.table({"t": days, "u": days, "row": range(4)})
    for text, rows in {
        "t >= '2026-01-10'": [1, 3],
        "'2026-01-09' < t < '2026-02-01' and u == t": [1],
        "t in ['2026-01-09', '2026-02-01']": [0, 3],
        "not t == '2026-01-10'": [0, 3],
    }.items():
        where = Where(text)
        where.check(table.schema)
        assert where.apply(table).column("row").to_pylist() == rows
    with pytest.raises(InvalidInput, match=r"--where .t > 'soon'. does not fit the columns: .*'soon'"):
        Where("t > 'soon'").check(table.schema)


@pytest.mark.parametrize(
    "text",
    ["", "a >", "f(a)", "a.b > 1", "[x for x in a]", "lambda: 1", "a > {1}[0]", "a is 1", "open('x')", "a ** 2 > 1"],
)
def test_what_is_no_filter_is_refused_and_never_executed(text):
    with pytest.raises(InvalidInput, match="--where"):
        Where(text)


def test_a_filter_that_some_row_does_not_bear_is_named():
    table = pa.table({"a": pa.array([4, 2]), "b": pa.array([2, 0])})
    where = Where("a / b > 1")
    where.check(table.schema)
    with pytest.raises(InvalidInput, match='--where "a / b > 1" does not fit the columns: divide by zero'):
        where.apply(table)


COMPARISONS = st.tuples(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), st.integers(-3, 3))


@given(st.lists(st.integers(-3, 3), max_size=10), COMPARISONS, COMPARISONS, st.sampled_from(["and", "or"]))
def test_comparisons_mean_what_they_mean_in_python(values, first, second, how):
    text = f"x {first[0]} {first[1]} {how} not x {second[0]} {second[1]}"
    found = Where(text).apply(pa.table({"x": pa.array(values, pa.int64())})).column("x").to_pylist()
    assert found == [x for x in values if eval(text, {"x": x})]
