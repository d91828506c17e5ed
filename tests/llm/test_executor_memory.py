"""Slots reserve address space, take memory by what is written, and give it back."""

import sys

import numpy as np
import pytest

from foretell.core.errors import ConfigError, PackageError
from foretell.llm.executors.memory import KvMemory
from foretell.llm.executors.onnx import OnnxSettings, open_onnx

MIB = 1 << 20


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.fixture
def memory():
    memory = KvMemory(arrays=4, slots=64, heads=2, context=65536, width=64, dtype=np.float32)
    yield memory
    memory.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_taken_when_written_and_given_back_on_release(memory):
    block = np.ones((4, 2, 16384, 64), np.float32)
    before = resident()  # 64 slots of 65,536 tokens are 8.6 GB of addresses
    memory.write(5, 0, block)
    assert resident() - before > block.nbytes - 8 * MIB
    memory.release(5)
    assert resident() - before < 8 * MIB
    assert not memory.part(0, 5, 1).any()


def test_neighbours_of_a_released_slot_keep_their_numbers():
    memory = KvMemory(arrays=2, slots=3, heads=1, context=100, width=24, dtype=np.float32)  # slots share pages
    for slot in range(3):
        memory.write(slot, 0, np.full((2, 1, 100, 24), slot + 1, np.float32))
    memory.release(1)
    assert (memory.part(0, 0, 1) == 1).all()
    assert (memory.part(1, 2, 1) == 3).all()


def test_parts_are_views_that_run_on_from_slot_to_slot(memory):
    part = memory.part(2, 3, 4)
    assert part.shape == (4, 2, 65536, 64)
    assert part.flags.c_contiguous
    part[1, 1, 7] = 9
    assert (memory.read(4, 7, 8)[2, 1] == 9).all()
    assert memory.token_bytes == memory.read(4, 7, 8).nbytes == 4 * 2 * 64 * 4


def test_more_address_space_than_there_is_says_what_to_do():
    with pytest.raises(ConfigError, match="Serve fewer sequences"):
        KvMemory(arrays=64, slots=1 << 20, heads=64, context=1 << 20, width=128, dtype=np.float32)


def test_a_graph_that_is_no_decoder_says_what_it_lacks(tmp_path):
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [value], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(PackageError, match=r"lacks attention_mask, input_ids, logits.* not known .x."):
        open_onnx(tmp_path / "model.onnx", OnnxSettings(1, 16))
    with pytest.raises(ConfigError, match="at least 1"):
        open_onnx(tmp_path / "model.onnx", OnnxSettings(0, 16))
