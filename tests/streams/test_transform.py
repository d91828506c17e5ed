"""transform.py: one event or a micro-batch at a time, under trust, and what fails fails alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.core.errors import ConfigError, ModelFailed, PackageError, UntrustedCode
from foretell.streams.transform import Transform
from tests.streams.state_world import BATCH, ONE, WINDOWS, event, feed, load, opened, plainly, run, same

STEPS = st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.integers(-40, 60)), min_size=1, max_size=40)


def walk(steps):
    second, events = 1_000, []
    for n, (key, step) in enumerate(steps):
        second += step
        events.append(event(key, second, n))
    return events


def poisoned(events, places):
    return [(key, time, {**row, "poison": True} if at in places else row) for at, (key, time, row) in enumerate(events)]


@pytest.mark.parametrize("form", [ONE, BATCH], ids=["one event", "a micro-batch"])
@given(steps=STEPS, poison=st.sets(st.integers(0, 39)))
@settings(max_examples=40, deadline=None)
def test_what_fails_fails_alone_and_leaves_no_trace(tmp_path_factory, form, steps, poison):
    folder = tmp_path_factory.mktemp("transform")
    transform = load(folder, WINDOWS + form)
    events = walk(steps)
    poison &= set(range(len(events)))
    store = opened(folder, transform)
    features = run(store, transform, "t/0", poisoned(events, poison))
    store.close()
    assert set(features.failed) == poison
    assert features.kept == [at for at in range(len(events)) if at not in poison]
    assert all("transform.py: transform" in e.message and "bad shop" in e.message for e in features.failed.values())
    # Without the poison, but with its times: a clock has seen them.
    clock_only = [
        (b"nobody", time, row) if at in poison else (key, time, row) for at, (key, time, row) in enumerate(events)
    ]
    expected = [row for at, row in enumerate(plainly(transform, clock_only)) if at not in poison]
    assert same(list(features.inputs["x"]) if features.kept else [], expected)


def test_a_late_event_and_one_from_the_future_are_named_and_in_no_window(tmp_path):
    transform = load(tmp_path, WINDOWS + BATCH)
    store = opened(tmp_path, transform)
    day = 86_400
    events = [event(b"a", second, 1) for second in (1_000, 1_000, 2_000, 1_000, 9 * day, 2_001)]
    features = run(store, transform, "t/0", events)
    assert features.kept == [0, 1, 2, 3, 4, 5]
    assert (features.late, features.ahead) == ([3], [4])
    assert features.inputs["x"][:, 0].tolist() == [1, 2, 1, 0, 0, 2]
    assert np.isnan(features.inputs["x"][3, 2])


def one(folder, body, declarations="amounts = tumbling('1h')"):
    text = (
        f"from foretell.streams.windows import session, tumbling\n{declarations}\ndef transform(event, state):\n {body}"
    )
    transform = load(folder, text)
    return transform, opened(folder, transform)


def amounts(*values):
    return [(b"a", 1_000_000, {"amount": value}) for value in values]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_value_is_not_added(tmp_path, missing):
    transform, store = one(tmp_path, "s = state.add(amounts, event.get('amount'))\n return {'x': [s.count, s.sum]}")
    features = run(store, transform, "t/0", [*amounts(missing, 2, missing, 4), (b"a", 1_000_000, {})])
    assert features.inputs["x"].tolist() == [[0, 0], [1, 2], [1, 2], [2, 6], [2, 6]]
    batch = load(
        tmp_path,
        "from foretell.streams.windows import tumbling\namounts = tumbling('1h')\n"
        "def transform_batch(events, state):\n return {'x': state.add(amounts, events['amount']).sum}",
    )
    store.close()
    store = opened(tmp_path, batch, reset=True)
    assert run(store, batch, "t/0", amounts(missing, 2, missing, 4)).inputs["x"].tolist() == [0, 2, 2, 6]


@pytest.mark.parametrize("form", ["transform(event, state)", "transform_batch(event, state)"])
def test_a_field_that_an_event_lacks_fails_it_alone_unless_it_may_be_missing(tmp_path, form):
    text = "from foretell.streams.windows import tumbling\namounts = tumbling('1h')\ndef %s:\n return {'x': %s}"
    for field, kept in (("event['amount']", [0, 2]), ("event.get('amount')", [0, 1, 2])):
        transform = load(tmp_path, text % (form, f"state.add(amounts, {field}).sum"))
        store = opened(tmp_path, transform, reset=True)
        features = run(store, transform, "t/0", [*amounts(2), (b"a", 1_000_000, {}), *amounts(4)])
        store.close()
        assert features.kept == kept
        assert features.inputs["x"].tolist() == [[2.0, 2.0, 6.0][at] for at in kept]


def test_values_of_a_key_are_kept_until_they_are_idle(tmp_path):
    body = "n = state.get('n', 0) + 1\n state.put('n', n, kept_for='1h')\n return {'x': [n]}"
    transform, store = one(tmp_path, body)

    def ask(*seconds):
        return [row.tolist() for row in feed(store, transform, "t/0", [event(b"a", s, 0) for s in seconds])]

    assert ask(0, 1, 2) == [[1], [2], [3]]
    assert ask(3_601, 3_602 + 3_600) == [[4], [1]]
    assert ask(100) == [[2]], "an older event does not make them older"
    assert ask(3_603 + 3_600) == [[3]]


def test_arrays_are_kept_as_they_are_and_cannot_be_changed_from_outside(tmp_path):
    body = (
        "import numpy as np\n last = state.get('last', np.zeros((2, 3), np.float32))\n last += 1\n"
        " if event['amount']: state.put('last', last)\n return {'x': last}"
    )
    transform, store = one(tmp_path, body)
    rows = run(store, transform, "t/0", amounts(1, 0, 0, 1)).inputs["x"]
    assert rows.dtype == np.float32
    assert rows[:, 1, 2].tolist() == [1, 2, 2, 2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {'x': [event['amout']]}", r"transform\.py: transform raised KeyError: 'amout'"),
        ("return [1]", "returned list, expected a dict of the model's inputs"),
        ("state.add(amounts, 'much'); return {}", "'much' is no number; declare the window with distinct=True"),
        ("state.add(tumbling('1h'), 1); return {}", "made inside a function; declare windows at the top of the file"),
        ("state.put('x', object()); return {}", "object cannot be kept; keep plain data or arrays"),
        ("return {'x': state.add(amounts, 1).median}", "AttributeError: 'Numbers' object has no attribute 'median'"),
        ("return {'x': [[1], [2, 3]]}", "returned what is no array"),
    ],
)
def test_a_mistake_in_the_function_is_the_events_failure(tmp_path, body, message):
    transform, store = one(tmp_path, body)
    (error,) = run(store, transform, "t/0", amounts(1)).failed.values()
    with pytest.raises(ModelFailed, match=message):
        raise error
    assert store.get("t/0", "amounts", b"a") is None, "and left no trace"


def test_a_row_of_another_shape_than_the_others_fails_alone(tmp_path):
    transform, store = one(tmp_path, "s = state.add(amounts, 1)\n return {'x': [s.sum] * event['amount']}")
    features = run(store, transform, "t/0", amounts(2, 3, 2))
    assert features.inputs["x"].tolist() == [[1, 1], [2, 2]]
    assert features.failed[1].message.endswith("returned x [3], for other events x [2]")


def test_too_few_rows_of_a_micro_batch_are_an_error(tmp_path):
    transform = load(tmp_path, "def transform_batch(events, state): return {'x': [1, 2, 3]}")
    features = run(opened(tmp_path, transform), transform, "t/0", amounts(1, 1))
    assert features.kept == []
    assert 'returned "x" of shape [3] for 1 events' in features.failed[0].message


def test_the_file_runs_only_under_trust(tmp_path):
    path = tmp_path / "transform.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef transform(event, state): return {{}}")
    with pytest.raises(
        UntrustedCode, match=r"transform\.py is Python code.*pass --trust-code if you trust whoever wrote"
    ):
        Transform.load(path, trust_code=False)
    assert not (tmp_path / "ran").exists()
    assert Transform.load(path, trust_code=True).windows == {}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("x = 1", ConfigError, "has to define either transform"),
        ("def transform(e, s): ...\ndef transform_batch(e, s): ...", ConfigError, "has to define either transform"),
        ("transform = 3", ConfigError, "transform is int, expected a function"),
        ("import nothing_like_this", PackageError, "failed while it loaded: ModuleNotFoundError"),
        ("from foretell.streams.windows import *\nx = tumbling('1 hour')", PackageError, '"1 hour" is no duration'),
        ("from foretell.streams.windows import *\nvalues = tumbling('1h')\ndef transform(e, s): ...", ConfigError,
         'cannot be called "values"'),
        ("from foretell.streams.watermark import *\na, b = Watermark(), Watermark()\ndef transform(e, s): ...",
         ConfigError, "declares 2 watermarks; a stream has one"),
    ],
)  # fmt: skip
def test_a_file_that_declares_nonsense_says_so_when_it_loads(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        load(tmp_path, text)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*, which --state names"):
        Transform.load(tmp_path / "transfrom.py", trust_code=True)


def test_the_version_is_the_text_of_the_file(tmp_path):
    first = load(tmp_path, WINDOWS + ONE).version
    assert load(tmp_path, WINDOWS + ONE).version == first
    assert load(tmp_path, WINDOWS + ONE + "# other").version != first
