"""Sessions: which provider and why, threads, signatures, and what a bad file is told."""

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from foretell.accel import ort
from foretell.core.errors import ConfigError, InvalidInput, ModelFailed, PackageError
from foretell.core.tensor import DTYPES

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def value(name, kind, *shape):
    return helper.make_tensor_value_info(name, kind, shape)


def write(path, nodes, inputs, outputs, opset=17):
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def echo(path, kind=TensorProto.FLOAT, shape=("n", 2), opset=17):
    node = helper.make_node("Identity", ["x"], ["y"])
    return write(path, [node], [value("x", kind, *shape)], [value("y", kind, *shape)], opset)


@pytest.mark.parametrize(
    ("device", "available", "providers", "why"),
    [
        ("auto", [CPU], (CPU,), "no accelerator provider is installed"),
        ("auto", [CUDA, CPU], (CUDA, CPU), "the installed onnxruntime has CUDAExecutionProvider"),
        ("auto", ["TensorrtExecutionProvider", CUDA, CPU], (CUDA, CPU), "has CUDAExecutionProvider"),
        ("auto", ["OpenVINOExecutionProvider", CPU], ("OpenVINOExecutionProvider", CPU), "has OpenVINO"),
        ("auto", ["CoreMLExecutionProvider", CPU], (CPU,), "coreml can be had by asking for it"),
        ("cpu", [CUDA, CPU], (CPU,), "the settings ask for it"),
        ("tensorrt", ["TensorrtExecutionProvider", CPU], ("TensorrtExecutionProvider", CPU), "settings ask"),
    ],
)
def test_providers_are_chosen_from_what_is_installed_and_the_reason_is_told(device, available, providers, why):
    choice = ort.choose_providers(device, available)
    assert choice.providers == providers
    assert why in choice.why


def test_a_device_that_the_installed_onnxruntime_lacks_is_a_config_error():
    with pytest.raises(
        ConfigError, match=r'device "cuda" needs CUDAExecutionProvider.*it has cpu.*set device = "auto"'
    ):
        ort.choose_providers("cuda", [CPU])


def test_an_unknown_device_names_the_nearest():
    with pytest.raises(ConfigError, match=r'unknown device "cudda"\. Did you mean "cuda"'):
        ort.choose_providers("cudda", [CPU])


def test_a_provider_that_would_not_start_falls_back_under_auto_and_is_an_error_when_asked_for(
    tmp_path, monkeypatch, caplog
):
    path = echo(tmp_path / "m.onnx")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with caplog.at_level(logging.INFO):
        session = ort.open_session(path, 1)
    assert session.choice.device == "cpu"
    assert "CUDAExecutionProvider is installed but would not start" in caplog.text
    with pytest.raises(ConfigError, match="could not start it"):
        ort.open_session(path, 1, "cuda")


def test_one_log_line_says_what_a_model_runs_on_and_why(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        ort.open_session(echo(tmp_path / "m.onnx"), 2, "cpu")
    assert [r.message for r in caplog.records] == [
        "m.onnx runs on cpu (CPUExecutionProvider), 2 intra-op threads: the settings ask for it"
    ]


def test_sessions_have_the_threads_asked_for_and_do_not_spin():
    options = ort.session_options(3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


KINDS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def test_there_is_a_model_for_every_datatype():
    assert set(KINDS) == set(DTYPES)


@pytest.mark.parametrize("datatype", KINDS)
def test_every_datatype_goes_in_and_comes_out(tmp_path, datatype):
    session = ort.open_session(echo(tmp_path / "m.onnx", KINDS[datatype]), 1)
    assert str(session.signature.inputs[0]) == f"x {datatype}[?, 2]"
    rows = np.array([[0, 1], [1, 1]]).astype(DTYPES[datatype])
    if datatype == "BYTES":
        rows = np.array([["é".encode(), b""], [b"a", b"b"]], dtype=object)
    (output,) = session.run({"x": rows}).values()
    assert output.dtype == rows.dtype
    np.testing.assert_array_equal(output, rows)


def test_bytes_that_are_not_utf8_are_refused_by_a_model_of_strings(tmp_path):
    session = ort.open_session(echo(tmp_path / "m.onnx", TensorProto.STRING, ("n",)), 1)
    with pytest.raises(InvalidInput, match="element 0: not UTF-8"):
        session.run({"x": np.array([b"\xff"], dtype=object)})


def test_a_fixed_row_axis_is_told_from_a_symbolic_one(tmp_path):
    nodes = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    inputs = [value("a", TensorProto.FLOAT, "rows", 3), value("b", TensorProto.FLOAT, 3, 2)]
    described = ort.describe(write(tmp_path / "m.onnx", nodes, inputs, [value("c", TensorProto.FLOAT, "rows", 2)]))
    assert described.row_symbols == {"a": "rows"}
    assert [s.shape for s in described.signature.inputs] == [(-1, 3), (3, 2)]
    assert not described.signature.batchable


def test_outputs_that_are_no_tensors_are_left_out_and_named(tmp_path):
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("SequenceConstruct", ["x"], ["s"]),
    ]
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    x, y = value("x", TensorProto.FLOAT, "n"), value("y", TensorProto.FLOAT, "n")
    described = ort.describe(write(tmp_path / "m.onnx", nodes, [x], [y, sequence]))
    assert described.left_out == ("s",)
    assert [s.name for s in described.signature.outputs] == ["y"]
    with pytest.raises(PackageError, match=r"no output is a tensor \(s\).*zipmap"):
        ort.describe(write(tmp_path / "s.onnx", nodes[1:], [x], [sequence]))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08" * 40])
def test_a_file_that_is_no_model_is_a_package_error(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(PackageError, match=r"m\.onnx: "):
        ort.open_session(path, 1)


def test_a_file_cut_short_is_a_package_error(tmp_path):
    path = echo(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PackageError, match="cut short"):
        ort.read_signature(path)


def test_a_missing_file_is_a_package_error(tmp_path):
    with pytest.raises(PackageError, match="no such file"):
        ort.open_session(tmp_path / "m.onnx", 1)


def test_a_newer_opset_says_to_export_with_an_older_one(tmp_path):
    with pytest.raises(PackageError, match=r"too old for the file.*older opset"):
        ort.open_session(echo(tmp_path / "m.onnx", opset=99), 1)


def test_an_operator_that_does_not_exist_is_named(tmp_path):
    x, y = value("x", TensorProto.FLOAT, "n"), value("y", TensorProto.FLOAT, "n")
    path = write(tmp_path / "m.onnx", [helper.make_node("Frobnicate", ["x"], ["y"])], [x], [y])
    with pytest.raises(PackageError, match="Frobnicate"):
        ort.open_session(path, 1)


def test_a_failing_run_is_the_model_s_failure_with_the_reason(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    inputs = [value("x", TensorProto.FLOAT, "n"), value("shape", TensorProto.INT64, 2)]
    session = ort.open_session(write(tmp_path / "m.onnx", nodes, inputs, [value("y", TensorProto.FLOAT, "a", "b")]), 1)
    with pytest.raises(ModelFailed, match=r"onnxruntime: .*reshape"):
        session.run({"x": np.zeros(3, np.float32), "shape": np.array([2, 2])})


def test_only_the_outputs_asked_for_are_computed(tmp_path):
    nodes = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])]
    outputs = [value("a", TensorProto.FLOAT, "n"), value("b", TensorProto.FLOAT, "n")]
    session = ort.open_session(write(tmp_path / "m.onnx", nodes, [value("x", TensorProto.FLOAT, "n")], outputs), 1)
    x = {"x": np.array([-1.0], np.float32)}
    assert list(session.run(x)) == ["a", "b"]
    assert session.run(x, ["b"]) == {"b": np.array([1.0], np.float32)}
    session.close()
    session.close()
    with pytest.raises(ModelFailed, match="closed"):
        session.run(x)
