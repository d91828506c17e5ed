"""Frames survive any cutting of the stream; what was sent is what is read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.core.tensor import DTYPES, pack_bytes
from foretell.fleet import wire
from foretell.fleet.restart import LONGEST_DELAY_S, LOOP_CRASHES, RestartPolicy


def arrays(rows: int):
    @st.composite
    def build(draw):
        name = draw(st.sampled_from(sorted(DTYPES)))
        shape = (rows, *draw(st.lists(st.integers(0, 3), max_size=2)))
        count = int(np.prod(shape))
        if name == "BYTES":
            array = np.empty(count, dtype=object)
            array[:] = draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
            return array.reshape(shape)
        return (
            np.frombuffer(draw(st.binary(min_size=count * 8, max_size=count * 8)), np.uint8)[
                : count * DTYPES[name].itemsize
            ]
            .copy()
            .view(DTYPES[name])
            .reshape(shape)
        )

    return build()


def same(a, b) -> bool:
    if a.dtype == object:
        return pack_bytes(a) == pack_bytes(b) and a.shape == b.shape
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(st.data(), st.booleans(), st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_frames_survive_any_cutting_of_the_stream(data, reuse, cuts):
    sent, stream = [], b""
    for _ in range(data.draw(st.integers(1, 5))):
        tensors = {
            f"t{i}": data.draw(arrays(data.draw(st.integers(1, 3)))) for i in range(data.draw(st.integers(0, 3)))
        }
        headers, body = wire.tensors_body([tensors])
        stream += b"".join(bytes(b) for b in wire.frame(wire.Run(1, headers), body))
        sent.append(tensors)
    reader, got, at, turn = wire.FrameReader(reuse=reuse), [], 0, 0
    while at < len(stream):
        room = reader.room()
        size = min(len(room), len(stream) - at, cuts[turn % len(cuts)])
        assert size > 0
        room[:size] = stream[at : at + size]
        at, turn = at + size, turn + 1
        reader.received(size)
        while (frame := reader.next()) is not None:
            header, body = frame
            tensors = wire.read_tensors(header.tensors, body)
            got.append({name: array.copy() for name, array in tensors.items()} if reuse else tensors)
    assert len(got) == len(sent)
    for expected, received in zip(sent, got, strict=True):
        assert list(expected) == list(received)
        assert all(same(expected[name], received[name]) for name in expected)


@given(st.data())
def test_the_rows_of_several_requests_arrive_as_one_tensor(data):
    width = data.draw(st.integers(1, 5))
    groups = [
        {"x": np.random.default_rng(rows).random((rows, width), np.float32)}
        for rows in data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    ]
    headers, body = wire.tensors_body(groups)
    tensors = wire.read_tensors(headers, memoryview(b"".join(bytes(b) for b in body)))
    assert np.array_equal(tensors["x"], np.concatenate([g["x"] for g in groups]))
    assert tensors["x"].flags.c_contiguous


def test_a_frame_larger_than_the_buffer_is_read_into_one_piece():
    big = {"x": np.arange(1_000_000, dtype=np.float32)}
    headers, body = wire.tensors_body([big])
    stream = b"".join(bytes(b) for b in wire.frame(wire.Run(1, headers), body))
    reader, at = wire.FrameReader(reuse=True), 0
    while (frame := reader.next()) is None:
        room = reader.room()
        size = min(len(room), len(stream) - at)
        room[:size] = stream[at : at + size]
        reader.received(size)
        at += size
    header, view = frame
    assert np.array_equal(wire.read_tensors(header.tensors, view)["x"], big["x"])


class TestRestartPolicy:
    def test_a_crash_after_answers_restarts_at_once(self):
        assert RestartPolicy().crashed(0.0, answered=True) == 0.0

    def test_failures_to_start_back_off_and_end_in_a_crash_loop(self):
        policy = RestartPolicy()
        delays = [policy.crashed(float(n), answered=False) for n in range(LOOP_CRASHES)]
        assert delays[:-1] == sorted(delays[:-1])
        assert delays[-1] == LONGEST_DELAY_S
        assert policy.looping

    def test_an_answer_ends_the_loop(self):
        policy = RestartPolicy()
        for n in range(LOOP_CRASHES):
            policy.crashed(float(n), answered=False)
        policy.answered()
        assert not policy.looping
        assert policy.crashed(99.0, answered=False) == pytest.approx(0.1)
