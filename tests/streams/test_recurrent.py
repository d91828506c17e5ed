"""Recurrent models: every key goes on where its last message ended, through micro-batches, commits and restarts."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from foretell.core.errors import ConfigError
from foretell.core.tensor import Signature, TensorSpec
from foretell.streams.recurrent import Recurrent
from foretell.streams.state import StateStore
from foretell.streams.watermark import Watermark

SIGNATURE = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 1)), TensorSpec("h", "FP32", (2, -1, 3)), TensorSpec("text", "BYTES", (-1,))),
    outputs=(
        TensorSpec("y", "FP32", (-1, 1)),
        TensorSpec("hN", "FP32", (2, -1, 3)),
        TensorSpec("long", "INT64", (2, -1, 3)),
        TensorSpec("text", "BYTES", (-1,)),
    ),
)


def opened(folder, recurrent):
    return StateStore.open(folder / "state.db", "none", recurrent.kinds, Watermark(delay="0s", confirm=1))


def model(inputs):
    """A running sum: `h` grows by `x`, `y` says it."""
    grown = inputs["h"] + inputs["x"].T[..., None]
    return {"y": grown[0, :, :1], "hN": grown}


def send(store, recurrent, keys, values, times):
    """What the processor does; the answers in the order of the messages."""
    times = np.array(times, np.int64)
    marks = store.advance("t/0", times)
    answers = [None] * len(keys)
    for wave in recurrent.waves(keys):
        here = [keys[at] for at in wave]
        inputs = {"x": np.array([[values[at]] for at in wave], np.float32)}
        inputs |= recurrent.feed(store, "t/0", here, times[wave], marks.of(wave))
        outputs = recurrent.keep(store, "t/0", here, times[wave], marks.of(wave), model(inputs))
        assert outputs.keys() == {"y"}
        for at, row in zip(wave, outputs["y"], strict=True):
            answers[at] = float(row[0])
    return answers


def test_each_key_goes_on_where_it_was_even_within_a_micro_batch(tmp_path):
    recurrent = Recurrent(["h=hN"], SIGNATURE)
    store = opened(tmp_path, recurrent)
    assert send(store, recurrent, [b"a", b"b", b"a", b"a", b"b"], [1, 10, 2, 3, 20], range(5)) == [1, 10, 3, 6, 30]
    assert send(store, recurrent, [b"b", b"c"], [1, 1], [5, 6]) == [31, 1]


def test_only_what_was_committed_survives_a_restart(tmp_path):
    recurrent = Recurrent(["h=hN"], SIGNATURE)
    store = opened(tmp_path, recurrent)
    send(store, recurrent, [b"a"], [1], [0])
    store.commit({"t/0": "1"})
    send(store, recurrent, [b"a"], [5], [1])
    store.close()
    store = opened(tmp_path, recurrent)
    assert send(store, recurrent, [b"a"], [2], [1]) == [3]


def test_a_key_that_was_idle_starts_anew(tmp_path):
    recurrent = Recurrent(["h=hN"], SIGNATURE, idle="1m")
    store = opened(tmp_path, recurrent)
    answers = send(store, recurrent, [b"a", b"b", b"a", b"b", b"a"], [1, 1, 1, 1, 1], [0, 0, 59_000, 60_000, 60_000])
    assert answers == [1, 1, 2, 1, 3]
    assert send(store, recurrent, [b"c", b"a"], [1, 1], [200_000, 200_000]) == [1, 1]


def test_waves_hold_no_key_twice_and_keep_each_keys_order():
    recurrent = Recurrent(["h=hN"], SIGNATURE)
    assert recurrent.waves([b"a", b"b", b"a", b"c", b"a", b"b"]) == [[0, 1, 3], [2, 5], [4]]
    assert recurrent.waves([]) == []


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("h", '"h" says no recurrent tensor; write INPUT=OUTPUT, such as state=stateN'),
        ("g=hN", 'the model has no input "g". Known: h, text, x'),
        ("h=hM", 'the model has no output "hM". Known: hN, long'),
        ("h=y", r"h=y: the output y FP32\[\?, 1\] cannot be the input h FP32\[2, \?, 3\] of the next message"),
        ("h=long", "cannot be the input"),
        ("text=text", "needs one variable axis, that of the rows, and numbers"),
    ],
)
def test_a_pair_that_does_not_fit_the_model_is_refused(pair, message):
    with pytest.raises(ConfigError, match=message):
        Recurrent([pair], SIGNATURE)


def silero():
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("not installed: silero-vad (make setup)")
    return Path(spec.submodule_search_locations[0], "data", "silero_vad.onnx")


def test_voices_of_many_speakers_are_heard_as_if_each_were_alone(tmp_path):
    """silero-vad, whose state has its rows on the second axis: interleaved streams answer as separate ones, exactly."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(silero())
    signature = Signature(
        inputs=(TensorSpec("input", "FP32", (-1, 576)), TensorSpec("state", "FP32", (2, -1, 128))),
        outputs=(TensorSpec("output", "FP32", (-1, 1)), TensorSpec("stateN", "FP32", (-1, -1, -1))),
    )
    recurrent = Recurrent(["state=stateN"], signature)
    store = opened(tmp_path, recurrent)
    sound = np.random.default_rng(0).normal(0, 0.1, (3, 20, 1, 576)).astype(np.float32)
    rate = np.array(16_000, np.int64)

    expected = np.empty((3, 20), np.float32)
    for speaker in range(3):
        state = np.zeros((2, 1, 128), np.float32)
        for n in range(20):
            output, state = session.run(None, {"input": sound[speaker, n], "state": state, "sr": rate})
            expected[speaker, n] = output[0, 0]

    heard = np.empty_like(expected)
    for n in range(20):
        for speaker in range(3):
            key, times = [b"speaker %d" % speaker], np.array([n * 32])
            marks = store.advance("t/0", times)
            fed = recurrent.feed(store, "t/0", key, times, marks)
            output, state = session.run(None, {"input": sound[speaker, n], "sr": rate, **fed})
            made = recurrent.keep(store, "t/0", key, times, marks, {"output": output, "stateN": state})
            heard[speaker, n] = made["output"][0, 0]
        if n == 10:
            store.commit({"t/0": str(n)})
            store.close()
            store = opened(tmp_path, recurrent)
    assert np.array_equal(heard, expected)
    assert expected.std() > 0
