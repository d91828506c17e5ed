"""`--map` as people write it, and the map that a signature and a table make of it."""

import pytest

from foretell.core.column_map import ColumnMap, parse_column_map
from foretell.core.errors import InvalidInput
from foretell.core.tensor import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("text", "BYTES", (-1,)), TensorSpec("X", "FP32", (-1, 2))), ())


def test_inputs_are_fed_by_columns_of_their_name_and_others_by_what_is_mapped():
    given = parse_column_map(["b, a=X"])
    complete = given.complete(SIGNATURE, ["a", "b", "text", "more"])
    assert complete == ColumnMap({"text": ("text",), "X": ("b", "a")})
    assert complete.columns == ("text", "b", "a")


def test_a_column_may_hold_an_equals_sign_and_feed_several_inputs():
    assert parse_column_map(["a=b=X", "a=b=text"]).feeds == {"X": ("a=b",), "text": ("a=b",)}


@pytest.mark.parametrize("item", ["x", "=x", "x=", "a,,b=x", ""])
def test_what_maps_nothing_is_refused_with_the_form(item):
    with pytest.raises(InvalidInput, match="write COLUMN=INPUT"):
        parse_column_map([item])


def test_an_input_that_is_mapped_twice_is_refused():
    with pytest.raises(InvalidInput, match='"X" is mapped twice'):
        parse_column_map(["a=X", "b=X"])


@pytest.mark.parametrize(
    ("items", "known", "says"),
    [
        (["a=Y"], ["a", "text", "X"], 'no input "Y" to map to. Known: X, text'),
        (["wdith=X"], ["width", "text"], 'no column "wdith". Did you mean "width"?'),
        ([], ["tekst", "X"], 'no column feeds input "text".*COLUMN=text.*Did you mean "tekst"'),
    ],
)
def test_what_does_not_fit_is_named_with_the_nearest_name(items, known, says):
    with pytest.raises(InvalidInput, match=says):
        parse_column_map(items).complete(SIGNATURE, known)
