"""The laws of a predictor, held by every runtime, plain and with transforms around it."""

import importlib.util
import typing

import numpy as np
import pytest
from zoo import KINDS, ROWS

from foretell.core.errors import InvalidInput, ModelFailed
from foretell.core.settings import ReplicaSettings
from foretell.core.tensor import datatype_of
from foretell.runtimes import load
from foretell.runtimes.loading import RUNTIMES
from foretell.store.manifest import RuntimeName

ONE_THREAD = ReplicaSettings(threads=1)
RAN: set[str] = set()


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    made = KINDS[request.param](tmp_path_factory.mktemp("package"))
    RAN.add(request.param)
    return made


@pytest.fixture
def predictor(kind):
    loaded = load(kind.package, ONE_THREAD, trust_code=True)
    yield loaded
    loaded.close()


def take(inputs, rows):
    return {name: np.ascontiguousarray(array[rows]) for name, array in inputs.items()}


def assert_same(left, right, tolerance):
    assert list(left) == list(right)
    for name, array in left.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, right[name], rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(array, right[name])


def test_the_signature_is_that_of_model_toml(kind, predictor):
    assert predictor.signature == kind.package.manifest.signature
    assert predictor.signature.batchable


def test_every_row_is_answered_once_in_the_declared_names_order_and_datatypes(kind, predictor):
    outputs = predictor.predict(kind.inputs)
    assert list(outputs) == [s.name for s in predictor.signature.outputs]
    for spec in predictor.signature.outputs:
        assert datatype_of(outputs[spec.name]) == spec.datatype
        assert outputs[spec.name].shape[0] == ROWS
        assert outputs[spec.name].flags.c_contiguous


def test_rows_keep_their_order(kind, predictor):
    together = predictor.predict(kind.inputs)
    backwards = predictor.predict(take(kind.inputs, slice(None, None, -1)))
    assert_same({n: a[::-1] for n, a in backwards.items()}, together, kind.tolerance)


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_a_batch_in_two_parts_gives_the_same_rows(kind, predictor, cut):
    together = predictor.predict(kind.inputs)
    first = predictor.predict(take(kind.inputs, slice(0, cut)))
    second = predictor.predict(take(kind.inputs, slice(cut, None)))
    assert_same({n: np.concatenate([first[n], second[n]]) for n in first}, together, kind.tolerance)


def test_the_same_batch_gives_the_same_bits(kind, predictor):
    assert_same(predictor.predict(kind.inputs), predictor.predict(kind.inputs), 0)


def test_a_batch_of_one_row_is_a_batch(kind, predictor):
    outputs = predictor.predict(take(kind.inputs, slice(0, 1)))
    assert {len(array) for array in outputs.values()} == {1}


def test_inputs_may_be_read_only_views_of_a_receive_buffer_and_are_not_changed(kind, predictor):
    frozen = {}
    for name, array in kind.inputs.items():
        frozen[name] = array.copy()
        if array.dtype != object:
            frozen[name] = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
        frozen[name].flags.writeable = False
    assert_same(predictor.predict(frozen), predictor.predict(kind.inputs), kind.tolerance)


def test_a_wrong_datatype_is_refused_by_the_signature(kind, predictor):
    wrong = {name: np.zeros(array.shape, np.int8) for name, array in kind.inputs.items()}
    with pytest.raises(InvalidInput, match="datatype INT8, the model expects"):
        predictor.signature.check(wrong)


def test_closing_twice_is_fine_and_a_closed_model_says_so(kind):
    loaded = load(kind.package, ONE_THREAD, trust_code=True)
    loaded.close()
    loaded.close()
    with pytest.raises(ModelFailed, match="closed"):
        loaded.predict(kind.inputs)


def test_two_predictors_of_one_package_do_not_notice_each_other(kind, predictor):
    other = load(kind.package, ONE_THREAD, trust_code=True)
    expected = predictor.predict(kind.inputs)
    other.close()
    assert_same(predictor.predict(kind.inputs), expected, 0)


def test_the_suite_ran_on_every_runtime_plain_and_transformed():
    assert {*RUNTIMES, "llm"} == set(typing.get_args(RuntimeName))  # llm generates; tests/llm holds its laws
    expected = {*RUNTIMES, *(f"{name} with labels" for name in RUNTIMES), "onnx with text"}
    if importlib.util.find_spec("torch") is None:
        expected -= {"torch", "torch with labels"}
    assert expected == RAN
