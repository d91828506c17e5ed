"""Requests become text: stops, choices, logprobs, grammars; every bad request is refused with what is wrong."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.core.errors import ContextExceeded, DeadlineExceeded, InvalidInput, ModelFailed, Overloaded
from foretell.core.generation import Chat, Finished, Grammar, Piece, Sampling, Started, Stops
from tests.llm.speaker import CONTEXT, Speaker, ends, text_of, tokens_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("speaker")


@pytest.fixture
def speaker(folder):
    return Speaker(folder, " naïve façade — 日本語, the end.")


def test_a_prompt_is_answered_and_ends_with_the_end_token(speaker):
    events = speaker.answer("Hello")
    prompt = speaker.ids("Hello")
    said = speaker.ids(speaker.says)
    assert events[0] == Started(len(prompt), 0)
    assert text_of(events) == speaker.says
    assert tokens_of(events) == said
    assert events[-1] == Finished(0, "stop", len(said) + 1)
    assert speaker.generator.load().running == 0


def test_no_piece_holds_half_a_character(speaker):
    for event in speaker.answer("Hello"):
        if isinstance(event, Piece):
            assert "\ufffd" not in event.text


def test_a_prompt_of_token_ids_is_the_same_as_its_text(speaker):
    assert text_of(speaker.answer(speaker.ids("Hello"))) == speaker.says


def test_a_chat_is_rendered_by_the_template(speaker):
    seen = []
    speaker.says, text = lambda tokens: seen.append(list(tokens)) or speaker.eos, speaker.says
    events = speaker.answer(Chat([{"role": "user", "content": text}]))
    assert seen[0] == speaker.ids(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
    assert ends(events) == [Finished(0, "stop", 1)]


def test_max_tokens_cuts_and_says_so(speaker):
    events = speaker.answer("Hello", stops=Stops(max_tokens=3))
    assert tokens_of(events) == speaker.ids(speaker.says)[:3]
    assert events[-1] == Finished(0, "length", 3)


def test_a_character_that_was_never_finished_is_shown_broken_at_the_end(speaker):
    speaker.says = "日"
    events = speaker.answer("Hello", stops=Stops(max_tokens=1))
    size = len(speaker.ids("日"))
    assert text_of(events) == ("日" if size == 1 else "\ufffd")


def test_without_max_tokens_the_context_is_the_limit(folder):
    speaker = Speaker(folder, lambda _: 50)
    events = speaker.answer("Hello")
    prompt = len(speaker.ids("Hello"))
    assert events[-1] == Finished(0, "length", CONTEXT - prompt)


@pytest.mark.parametrize("stop", ["façade", "de —", " —", "e", "日本", "end.", "ï"])
def test_the_text_ends_before_a_stop_text_wherever_tokens_are_cut(speaker, stop):
    events = speaker.answer("Hello", stops=Stops(stop=(stop,)))
    assert text_of(events) == speaker.says[: speaker.says.index(stop)]
    assert [end.reason for end in ends(events)] == ["stop"]
    assert events[-1].completion_tokens <= len(speaker.ids(speaker.says))
    assert speaker.generator.load().running == 0


def test_what_could_have_become_a_stop_is_shown_when_it_does_not(speaker):
    events = speaker.answer("Hello", stops=Stops(stop=("the end!", "日本人")))
    assert text_of(events) == speaker.says


def test_stop_texts_wait_for_min_tokens(speaker):
    said = speaker.ids(speaker.says)
    events = speaker.answer("Hello", stops=Stops(stop=("e",), min_tokens=len(said) - 2))
    assert events[-1].completion_tokens > len(said) - 2


def test_the_end_token_waits_for_min_tokens(folder):
    speaker = Speaker(folder, "a")
    events = speaker.answer("Hello", stops=Stops(min_tokens=9))
    assert events[-1].completion_tokens >= 9
    assert speaker.eos not in tokens_of(events)


def test_stop_token_ids_end_the_text_and_are_not_in_it(speaker):
    said = speaker.ids(speaker.says)
    events = speaker.answer("Hello", stops=Stops(stop_token_ids=(said[4],)))
    at = said.index(said[4])
    assert tokens_of(events) == said[:at]
    assert events[-1] == Finished(0, "stop", at + 1)


def test_ignored_ends_are_no_ends(speaker):
    speaker.says = "ab"
    events = speaker.answer("Hello", stops=Stops(ignore_eos=True, max_tokens=20))
    assert events[-1] == Finished(0, "length", 20)
    assert text_of(events).startswith("ab")


def test_echo_repeats_the_prompt_first_in_every_choice(speaker):
    for prompt in ("Hello wörld", speaker.ids("Hello wörld")):
        events = speaker.answer(prompt, echo=True, n=2)
        for choice in (0, 1):
            assert text_of(events, choice) == "Hello wörld" + speaker.says
            assert tokens_of(events, choice) == speaker.ids(speaker.says)


def test_n_choices_each_end_once_and_draw_by_their_own_seed(folder):
    speaker = Speaker(folder, lambda _: 60, peak=0.0)
    asked = {"stops": Stops(max_tokens=12, ignore_eos=True), "n": 3}
    events = speaker.answer("Hello", sampling=Sampling(temperature=1.0, seed=5), **asked)
    said = [tokens_of(events, choice) for choice in range(3)]
    assert len({tuple(tokens) for tokens in said}) == 3
    assert sorted(end.choice for end in ends(events)) == [0, 1, 2]
    assert sum(isinstance(event, Started) for event in events) == 1
    alone = speaker.answer("Hello", sampling=Sampling(temperature=1.0, seed=6), stops=asked["stops"])
    assert tokens_of(alone) == said[1]
    assert tokens_of(speaker.answer("Hello", sampling=Sampling(temperature=1.0), stops=asked["stops"])) != said[0]


def test_the_packages_defaults_fill_in_what_is_left_open(folder):
    speaker = Speaker(folder, "yes", peak=0.5, defaults=Sampling(temperature=1.5, top_k=1))
    greedy = speaker.answer("Hello", sampling=Sampling(temperature=0.0), stops=Stops(max_tokens=8))
    default = speaker.answer("Hello", stops=Stops(max_tokens=8))
    assert tokens_of(greedy) == tokens_of(default)
    free = speaker.answer("Hello", sampling=Sampling(top_k=0, seed=3), stops=Stops(max_tokens=8))
    assert tokens_of(free) != tokens_of(default)


def test_logprobs_come_with_their_tokens_texts_and_bytes(speaker):
    events = speaker.answer("Hello", logprobs=2)
    logprobs = [one for event in events if isinstance(event, Piece) for one in event.logprobs]
    assert [one.token for one in logprobs] == tokens_of(events)
    assert b"".join(one.raw for one in logprobs).decode() == speaker.says
    for one in logprobs:
        assert one.logprob <= 0
        assert one.text == one.raw.decode("utf-8", "replace")
        assert len(one.top) == 2
        assert one.top[0][0] == one.token
        assert one.top[0][2] >= one.top[1][2]


def test_logprobs_of_the_chosen_tokens_alone(speaker):
    events = speaker.answer("Hello", logprobs=0)
    assert all(one.top == [] for event in events if isinstance(event, Piece) for one in event.logprobs)
    assert all(event.logprobs == [] for event in speaker.answer("Hello") if isinstance(event, Piece))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), kind=st.sampled_from(["json", "json_schema", "regex", "lark"]))
def test_a_grammar_is_followed_whatever_the_model_wants(folder, seed, kind):
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    texts = {"json": "", "json_schema": json.dumps(schema), "regex": "[ab]{3,5}", "lark": 'start: "x" /[0-9]{4}/ "y"?'}
    speaker = Speaker(folder, lambda _: 70, peak=0.0, context=200)
    sampling = Sampling(temperature=1.0, seed=seed)
    events = speaker.answer("Hello", grammar=Grammar(kind, texts[kind]), sampling=sampling)
    text = text_of(events)
    (end,) = ends(events)
    if end.reason == "length":
        return
    if kind == "regex":
        assert 3 <= len(text) <= 5 and set(text) <= {"a", "b"}
    elif kind == "lark":
        assert text[0] == "x" and text[1:5].isdigit() and text[5:] in ("", "y")
    else:
        assert isinstance(json.loads(text), dict)
        assert kind == "json" or json.loads(text)["a"] in ("x", "y")


def test_a_finished_grammar_ends_the_text_even_where_ends_are_ignored(folder):
    speaker = Speaker(folder, lambda _: 70, peak=0.0)
    events = speaker.answer("Hello", grammar=Grammar("regex", "abc"), stops=Stops(ignore_eos=True))
    assert text_of(events) == "abc"
    assert ends(events)[0].reason == "stop"


@settings(max_examples=40, deadline=None)
@given(
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.8, 1.0]),
        top_p=st.sampled_from([None, 0.9]),
        repetition_penalty=st.sampled_from([None, 1.3]),
        frequency_penalty=st.sampled_from([0.0, 0.7]),
        seed=st.integers(0, 99),
    ),
    stops=st.builds(
        Stops,
        max_tokens=st.integers(1, 25),
        min_tokens=st.sampled_from([0, 1]),
        stop=st.sampled_from([(), ("a",), ("e ", "th")]),
        ignore_eos=st.booleans(),
    ),
    grammar=st.sampled_from([None, Grammar("regex", "(ab|cd|[e-h]{3} )*"), Grammar("json")]),
    guesses=st.integers(1, 6),
)
def test_guesses_change_neither_text_nor_ends_nor_logprobs(folder, sampling, stops, grammar, guesses):
    told = []
    for count in (0, guesses):
        speaker = Speaker(folder, lambda tokens: 20 + sum(tokens) % 60, peak=3.0, guesses=count)
        events = speaker.answer("Hello", sampling=sampling, stops=stops, grammar=grammar, n=2, logprobs=1)
        pieces = [[e for e in events if isinstance(e, Piece) and e.choice == choice] for choice in (0, 1)]
        told.append(
            [
                *(("".join(p.text for p in one), [t for p in one for t in p.logprobs]) for one in pieces),
                *sorted((end.choice, end.reason, end.completion_tokens) for end in ends(events)),
            ]
        )
    assert told[0] == told[1]


def test_what_a_grammar_forces_is_guessed_and_costs_few_steps(folder):
    runs = []
    for guesses in (0, 16):
        speaker = Speaker(folder, "the answer, which is known", guesses=guesses)
        events = speaker.answer("Hello", grammar=Grammar("regex", "the answer, which is (known|unknown)"))
        assert text_of(events) == speaker.says
        runs.append(speaker.executor.runs)
        assert guesses == 0 or ends(events)[0].accepted_tokens > 4
    assert runs[1] < runs[0] / 2


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
BAD = {
    "empty prompt": ({"prompt": ""}, r"the prompt is empty.*at \$\.prompt"),
    "no tokens": ({"prompt": []}, r"the prompt is empty"),
    "token beyond the vocabulary": ({"prompt": [1, 99999]}, r"99999 is no token id.*at \$\.prompt\[1\]"),
    "negative token": ({"prompt": [-1]}, r"-1 is no token id"),
    "no messages": ({"prompt": Chat([])}, r"messages is empty.*\$\.messages"),
    "unknown role": ({"prompt": Chat([{"role": "boss", "content": "x"}])}, r'"boss".*\$\.messages\[0\]\.role'),
    "messages as a variable": (
        {"prompt": Chat([{"role": "user", "content": "x"}], template_arguments={"messages": []})},
        r"\$\.chat_template_kwargs\.messages",
    ),
    "half a character": ({"prompt": "a\ud800"}, r"no valid Unicode"),
    "long prompt": ({"prompt": [9] * 300}, r"context is 256 tokens.*has 300"),
    "text far beyond the context": ({"prompt": "x" * 10**6}, r"context is 256 tokens.*1000000 characters"),
    "max_tokens 0": ({"stops": Stops(max_tokens=0)}, r"max_tokens is 0; expected at least 1 \(at \$\.max_tokens\)"),
    "huge max_tokens": ({"prompt": [9] * 56, "stops": Stops(max_tokens=10**12)}, r"1000000000000.*256.*56.*leaves 200"),
    "min above max": ({"stops": Stops(max_tokens=3, min_tokens=4)}, r"min_tokens is 4; expected from 0 to 3"),
    "empty stop": ({"stops": Stops(stop=("x", ""))}, r"stop text is empty.*\$\.stop\[1\]"),
    "a dictionary of stops": ({"stops": Stops(stop=("x",) * 65)}, r"65 stop texts; send at most 64 \(at \$\.stop\)"),
    "unknown stop token": ({"stops": Stops(stop_token_ids=(70000,))}, r"70000.*\$\.stop_token_ids\[0\]"),
    "cold": (
        {"sampling": Sampling(temperature=-0.1)},
        r"temperature is -0\.1; expected from 0 to 2 \(at \$\.temperature",
    ),
    "hot": ({"sampling": Sampling(temperature=2.5)}, r"temperature is 2\.5"),
    "not a number": ({"sampling": Sampling(temperature=float("nan"))}, r"temperature is nan"),
    "top_p": ({"sampling": Sampling(top_p=1.5)}, r"top_p is 1\.5"),
    "top_k": ({"sampling": Sampling(top_k=-2)}, r"top_k is -2; expected at least -1"),
    "min_p": ({"sampling": Sampling(min_p=-1.0)}, r"min_p is -1"),
    "presence": ({"sampling": Sampling(presence_penalty=3.0)}, r"presence_penalty is 3"),
    "frequency": ({"sampling": Sampling(frequency_penalty=-3.0)}, r"frequency_penalty is -3"),
    "repetition": ({"sampling": Sampling(repetition_penalty=0.0)}, r"repetition_penalty is 0"),
    "bias of no token": ({"sampling": Sampling(logit_bias={99999: 1.0})}, r"99999.*\$\.logit_bias"),
    "wild bias": ({"sampling": Sampling(logit_bias={5: 101.0})}, r"logit_bias\.5 is 101"),
    "no choices": ({"n": 0}, r"n is 0; expected from 1 to 128"),
    "many logprobs": ({"logprobs": 21}, r"logprobs is 21"),
    "echo with logprobs": ({"logprobs": 1, "echo": True}, r"leave out echo or logprobs"),
    "schema that is no JSON": ({"grammar": Grammar("json_schema", "{")}, r"the JSON schema: EOF"),
    "schema of no type": ({"grammar": Grammar("json_schema", '{"type": "foo"}')}, r"Invalid type: foo"),
    "impossible schema": ({"grammar": Grammar("json_schema", '{"type":"integer","minimum":2,"maximum":1}')}, "Unsatis"),
    "bad regex": ({"grammar": Grammar("regex", "a(")}, r"(?s)regular expression cannot be used.*unclosed group"),
    "impossible regex": ({"grammar": Grammar("regex", r"[^\s\S]")}, r"impossible: no text matches"),
    "bad lark": ({"grammar": Grammar("lark", "start: foo")}, r'(?s)Lark grammar.*unknown name: "foo"'),
    "endless lark": ({"grammar": Grammar("lark", 'start: x\nx: x "a"')}, r"impossible"),
    "tool that is none": ({"prompt": Chat([{"role": "user", "content": "x"}], [{}])}, r"\$\.tools\[0\]"),
    "call without tools": (
        {"prompt": Chat([{"role": "user", "content": "x"}], [], "required")},
        r"no tools.*\$\.tool_choice",
    ),
    "unknown tool": (
        {"prompt": Chat([{"role": "user", "content": "x"}], [WEATHER], "name:wether")},
        r'"wether".*Did you mean "weather"',
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_and_leaves_nothing_behind(speaker, name):
    fields, message = BAD[name]
    speaker.submit("Other", number=1)
    with pytest.raises(InvalidInput, match=message):
        speaker.submit(**{"prompt": "Hello", **fields})
    speaker.run()
    assert text_of(speaker.told[1]) == speaker.says
    assert 0 not in speaker.told


@pytest.mark.parametrize("name", ["long prompt", "text far beyond the context", "huge max_tokens"])
def test_what_does_not_fit_the_context_has_a_class_of_its_own(speaker, name):
    with pytest.raises(ContextExceeded):
        speaker.submit(**{"prompt": "Hello", **BAD[name][0]})


def test_a_full_queue_refuses_the_whole_request(speaker):
    with pytest.raises(Overloaded):
        speaker.submit("Hello", n=20)
    assert speaker.generator.load().waiting == 0


def test_what_fails_as_one_choice_fails_once_as_a_whole(folder):
    speaker = Speaker(folder, "abc")

    def spend(works):
        if any(work.slot == 1 and work.past > 5 for work in works):
            raise RuntimeError("slot 1 is broken")

    speaker.executor._spend = spend
    speaker.submit("Hello, this is a prompt", n=2)
    speaker.run()
    (end,) = ends(speaker.told[0])
    assert isinstance(end, ModelFailed)
    assert speaker.told[0][-1] is end


def test_a_grammar_that_breaks_down_on_the_way_fails_its_request_alone(speaker):
    speaker.submit("Other", number=1)
    speaker.submit("Hello", grammar=Grammar("regex", "[a-z]{20}"))
    speaker.step()
    constraint = speaker.generator._requests[0].runs[0].constraint
    constraint._matcher.consume_token(speaker.ids("1")[0])  # as when llguidance meets one of its limits
    speaker.run()
    (end,) = ends(speaker.told[0])
    assert isinstance(end, ModelFailed)
    assert "grammar" in end.message
    assert text_of(speaker.told[1]) == speaker.says


def test_a_deadline_that_passed_ends_the_request(speaker):
    speaker.submit("Hello", deadline=0.0, n=2)
    speaker.run()
    assert [type(end) for end in ends(speaker.told[0])] == [DeadlineExceeded]


def test_nothing_is_said_of_a_cancelled_request(speaker):
    speaker.submit("Hello", n=2)
    speaker.step()
    speaker.step()
    said = len(speaker.told[0])
    speaker.generator.cancel(0)
    speaker.generator.cancel(12345)
    assert speaker.step() == []
    assert len(speaker.told[0]) == said
    load = speaker.generator.load()
    assert (load.running, load.waiting) == (0, 0)


def test_close_drops_everything_and_gives_back_what_it_ran_on(speaker):
    speaker.submit("Hello")
    speaker.generator.close()
    assert speaker.closed == 1
    assert speaker.generator.load().waiting == 0


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_request_ends_once_for_each_choice_whatever_happens_around_it(folder, data):
    speaker = Speaker(folder, lambda tokens: 20 + sum(tokens) % 60, peak=2.0, slots=3)
    cancelled = set()
    for number in range(data.draw(st.integers(1, 6))):
        stops = Stops(max_tokens=data.draw(st.integers(1, 12)), stop=data.draw(st.sampled_from([(), ("a",), ("th",)])))
        sampling = Sampling(temperature=data.draw(st.sampled_from([0.0, 1.0])), seed=number)
        try:
            speaker.submit("Hello", number, stops=stops, sampling=sampling, n=data.draw(st.integers(1, 3)))
        except Overloaded:
            continue
        for _ in range(data.draw(st.integers(0, 3))):
            speaker.step()
        if data.draw(st.integers(0, 4)) == 0:
            speaker.generator.cancel(number)
            cancelled.add(number)
    speaker.run()
    for number, events in speaker.told.items():
        finished = [end.choice for end in ends(events)]
        assert len(set(finished)) == len(finished)
        if number not in cancelled:
            choices = {event.choice for event in events if isinstance(event, Piece | Finished)}
            assert set(finished) == choices == set(range(len(finished)))
            assert isinstance(events[0], Started)
            for choice in choices:
                last = [e for e in events if isinstance(e, Piece | Finished) and e.choice == choice][-1]
                assert isinstance(last, Finished)
