"""Generations in this process, over a scripted generator."""

import itertools
from pathlib import Path

import pytest

import foretell
from foretell.app import model as model_module
from foretell.app.speaking import Speaker, request_of
from foretell.core.errors import InvalidInput, ModelFailed, Overloaded
from foretell.core.generation import Chat, Finished, GenerateRequest, Sampling, Started, Stops
from tests.fleet.scripted import ScriptedGenerator, prompt
from tests.plane.test_generate import MANIFEST


@pytest.fixture
def generator():
    return ScriptedGenerator()


@pytest.fixture
def model(tmp_path: Path, monkeypatch, generator):
    monkeypatch.setattr(model_module, "load_generator", lambda package, *settings: generator)
    (tmp_path / "model.toml").write_text(MANIFEST)
    (tmp_path / "model.onnx").write_bytes(b"")
    with foretell.load(tmp_path) as model:
        yield model


def test_a_text_is_continued_as_a_whole_or_piece_by_piece(model):
    assert model.generates
    assert model.generate(prompt(tokens=3)) == " 0 1 2"
    assert list(model.stream(prompt(tokens=3))) == [" 0", " 1", " 2"]
    assert model.generate("Once upon a time", max_tokens=5) == " 0 1 2 3 4"


def test_every_event_of_a_whole_request_is_there(model):
    events = list(model.events(GenerateRequest(prompt(tokens=0), n=2)))
    assert events == [Started(7, 2), Finished(0, "stop", 0), Finished(1, "stop", 0)]


def test_texts_may_be_streamed_side_by_side(model):
    pairs = itertools.zip_longest(model.stream(prompt(tokens=2)), model.stream(prompt(tokens=4)))
    assert list(pairs) == [(" 0", " 0"), (" 1", " 1"), (None, " 2"), (None, " 3")]


def test_a_stream_that_is_left_is_cancelled(model, generator):
    stream = model.stream(prompt(tokens=1000))
    next(stream)
    stream.close()
    assert generator.load().running == 0
    assert generator.cancelled == [1]


def test_failures_are_raised_and_the_next_text_works(model):
    with pytest.raises(Overloaded):
        model.generate(prompt(refuse="overloaded"))
    with pytest.raises(InvalidInput, match="cannot go on"):
        model.generate(prompt(fails=1))
    assert model.generate(prompt(tokens=1)) == " 0"


def test_a_language_model_predicts_no_rows_and_a_closed_one_says_nothing(model):
    with pytest.raises(InvalidInput, match="call generate"):
        model.predict(text_input="x")
    model.close()
    with pytest.raises(ModelFailed, match="closed"):
        model.generate("x")


def test_a_model_that_predicts_generates_no_text(tmp_path: Path):
    from tests.plane.conftest import MANIFEST as ROWS

    (tmp_path / "model.py").write_text("def predict(inputs):\n    return {'y': inputs['x']}\n")
    (tmp_path / "model.toml").write_text(ROWS)
    with foretell.load(tmp_path, trust_code=True) as model:
        assert not model.generates
        with pytest.raises(InvalidInput, match="call predict"):
            model.generate("x")


class TestRequests:
    def test_options_go_where_they_belong(self):
        made = request_of("x", {"max_tokens": 5, "stop": "\n", "temperature": 0, "seed": 3})
        assert made.stops == Stops(max_tokens=5, stop=("\n",))
        assert made.sampling == Sampling(temperature=0.0, seed=3)

    def test_prompts_are_texts_token_ids_or_conversations(self):
        assert request_of("x", {}).prompt == "x"
        assert request_of([1, 2], {}).prompt == [1, 2]
        messages = [{"role": "user", "content": "Hello"}]
        made = request_of(messages, {}).prompt
        assert isinstance(made, Chat)
        assert made.messages == messages

    def test_wrong_options_are_named(self):
        with pytest.raises(InvalidInput, match=r'unknown option "temprature".*"temperature"'):
            request_of("x", {"temprature": 1})
        with pytest.raises(InvalidInput, match="temperature"):
            request_of("x", {"temperature": "hot"})


def test_a_speaker_forgets_what_has_ended(generator):
    speaker = Speaker(generator)
    for _ in range(3):
        list(speaker.events(GenerateRequest(prompt())))
    assert not speaker._heard
