"""`foretell.load`: a model in this process, its inputs converted with errors that name them."""

import numpy as np
import pytest

import foretell
from foretell.core.columns import to_tensor, to_tensors
from foretell.core.errors import InvalidInput, ModelFailed, NotFound, PackageError, UntrustedCode
from foretell.core.tensor import Signature, TensorSpec
from tests.cli.conftest import scale_model


def test_a_model_of_the_store_answers_by_name(scale, home):
    with foretell.load("scale") as model:
        outputs = model.predict(x=[[1, 2, 3]])
        assert outputs["y"].tolist() == [[2, 4, 6]]
        assert outputs["y"].dtype == np.float32
        assert model.predict({"x": np.ones((2, 3))})["y"].shape == (2, 3)
        assert (model.name, model.version) == ("scale", "1")
        assert [str(s) for s in model.signature.inputs] == ["x FP32[?, 3]"]


def test_a_store_can_be_named(scale, home, monkeypatch):
    monkeypatch.setenv("FORETELL_HOME", str(home.parent / "other"))
    with pytest.raises(NotFound):
        foretell.load("scale")
    with foretell.load("scale@1", store=str(home)) as model:
        assert model.version == "1"


def test_a_model_file_is_imported_and_its_scratch_goes_with_the_model(home, tmp_path):
    model = foretell.load(scale_model(tmp_path / "m.onnx", 3.0))
    assert model.predict(x=[[1, 1, 1]])["y"].tolist() == [[3, 3, 3]]
    folder = model.package.path
    assert folder.exists()
    model.close()
    model.close()
    assert not folder.exists()
    with pytest.raises(ModelFailed, match="is closed"):
        model.predict(x=[[1, 1, 1]])


def test_what_cannot_be_loaded_says_why(scale, home, tmp_path):
    with pytest.raises(NotFound, match='Did you mean "scale"'):
        foretell.load("scal")
    with pytest.raises(PackageError, match="no such file"):
        foretell.load("./gone.onnx")
    (tmp_path / "f.py").write_text("def predict(x): return x")
    with pytest.raises(UntrustedCode, match="trust"):
        foretell.load(tmp_path / "f.py")


def test_the_module_has_nothing_else():
    with pytest.raises(AttributeError, match="laod"):
        foretell.laod  # noqa: B018


@pytest.mark.parametrize(
    ("value", "datatype", "shape", "expected"),
    [
        ([1, 2], "FP32", (-1,), np.array([1, 2], np.float32)),
        ([1, None], "FP64", (-1,), np.array([1, np.nan])),
        (np.array([1, 2], np.int64), "INT8", (-1,), np.array([1, 2], np.int8)),
        ([True, False], "BOOL", (-1,), np.array([True, False])),
        ("one row", "BYTES", (-1,), np.array([b"one row"], object)),
        (b"\xff", "BYTES", (-1,), np.array([b"\xff"], object)),
        ([["a", b"b"]], "BYTES", (-1, 2), np.array([[b"a", b"b"]], object)),
        (np.array(["ü"]), "BYTES", (-1,), np.array(["ü".encode()], object)),
        ([], "INT64", (-1,), np.array([], np.int64)),
    ],
)
def test_values_become_tensors_of_the_declared_datatype(value, datatype, shape, expected):
    array = to_tensor(value, TensorSpec("x", datatype, shape))
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("value", "datatype", "says"),
    [
        ([1.5], "INT64", 'input "x" has datatype FP64, the model expects INT64'),
        ([300], "UINT8", 'input "x" holds 300, which UINT8 cannot'),
        ([-1], "UINT8", 'input "x" holds -1'),
        (["a"], "FP32", 'input "x" has datatype BYTES'),
        ([1], "BOOL", 'input "x" has datatype INT64'),
        ([[1], [2, 3]], "FP32", 'input "x" cannot be read as FP32'),
        ([["a"], ["b", "c"]], "BYTES", 'input "x" is ragged'),
        ([1], "BYTES", 'input "x" is BYTES: give text or bytes, not int'),
        ([{"a": 1}], "FP32", 'input "x" cannot be read'),
    ],
)
def test_values_that_would_lose_something_are_refused_by_name(value, datatype, says):
    with pytest.raises(InvalidInput) as refused:
        to_tensor(value, TensorSpec("x", datatype, (-1,)))
    assert says in str(refused.value)


def test_columns_are_matched_by_name():
    signature = Signature((TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "INT64", (-1,))), ())
    assert list(to_tensors({"b": [1], "a": [2]}, signature)) == ["a", "b"]
    with pytest.raises(InvalidInput, match='unknown input "c"'):
        to_tensors({"a": [1], "b": [1], "c": [1]}, signature)
    with pytest.raises(InvalidInput, match='input "b" is missing'):
        to_tensors({"a": [1]}, signature)
    with pytest.raises(InvalidInput, match="rows"):
        to_tensors({"a": [1, 2], "b": [1]}, signature)
