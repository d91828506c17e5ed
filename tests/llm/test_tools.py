"""Tools: models are told of them, arguments are always valid, and calls are read wherever the text is cut."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from foretell.core.errors import InvalidInput
from foretell.core.generation import Chat, Finished, Grammar, Sampling, Stops, ToolCall
from foretell.llm.grammar import Grammars
from foretell.llm.template import ChatTemplate
from foretell.llm.text import Tokenizer
from foretell.llm.tools import Call, ToolParser, called, calls_grammar, described
from tests.llm import smollm2, vocabularies
from tests.llm.speaker import Speaker, ends, text_of

ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
EOS = 2


def rendered(folder, chat):
    template = ChatTemplate((folder / "chat_template.jinja").read_text())
    plain = Chat(template.plain_messages(chat.messages), chat.tools, chat.tool_choice)
    return template.render(described(plain))


def written(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


PARIS = written("weather", '{"city": "Paris", "days": 3}')
NOW = written("now", "{}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return smollm2.tokenizer_folder(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def grammars(folder):
    return Grammars(folder / "tokenizer.json", 49152, [EOS])


def read(pieces):
    parser, text, calls = ToolParser(), "", []
    for piece in pieces:
        shown, found = parser.push(piece)
        text += shown
        calls += found
    return text + parser.flush(), calls


SPOKEN = {
    "plain text": ("Hello <b>you</b>, 1 < 2\n", "Hello <b>you</b>, 1 < 2\n", []),
    "a call": (PARIS, "", [Call("weather", '{"city": "Paris", "days": 3}')]),
    "text and a call": ("Let me see.\n\n" + NOW, "Let me see.", [Call("now", "{}")]),
    "calls": (PARIS + "\n" + NOW, "", [Call("weather", '{"city": "Paris", "days": 3}'), Call("now", "{}")]),
    "on one line": ('<tool_call>{"name":"now","arguments":{}}</tool_call>', "", [Call("now", "{}")]),
    "a cut call": (PARIS[:-5], PARIS[:-5], []),
    "a cut tag": ("Look: <tool_ca", "Look: <tool_ca", []),
    "an end tag in a string": (
        written("now", '{"a": "</tool_call>"}'),
        "",
        [Call("now", '{"a": "</tool_call>"}')],
    ),
    "no arguments": ('<tool_call>{"name": "now"}</tool_call>', "", [Call("now", "{}")]),
    "unicode": (written("now", '{"a": "日本"}'), "", [Call("now", '{"a": "日本"}')]),
}


@pytest.mark.parametrize("name", SPOKEN)
def test_calls_are_read_however_the_text_is_cut(name):
    whole, text, calls = SPOKEN[name]
    assert read([whole]) == (text, calls)
    assert read(whole) == (text, calls)
    for at in range(len(whole)):
        assert read([whole[:at], whole[at:]]) == (text, calls)


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["<tool_call>", "</tool_call>", "<tool", " ", "\n", "a", PARIS, NOW, "{}"]), max_size=6
    )
)
@example(parts=["<tool_call>", PARIS])
def test_cuts_change_nothing_and_no_plain_text_is_lost(parts):
    whole = "".join(parts)
    together = read([whole])
    assert read(whole) == together
    text, calls = together
    if not calls:
        assert text == whole


def test_a_template_that_knows_no_tools_has_them_in_the_system_message(folder):
    assert not ChatTemplate((folder / "chat_template.jinja").read_text()).knows_tools
    prompt = rendered(folder, Chat(ASK, TOOLS))
    system = prompt.split("<|im_end|>")[0]
    assert system.startswith("<|im_start|>system\n# Tools")
    for tool in TOOLS:
        assert json.dumps(tool) in system
    assert "<tool_call>" in system
    assert prompt.endswith("<|im_start|>assistant\n")


def test_a_system_message_of_the_chats_own_is_kept_before_the_tools(folder):
    for content in ("Be brief.", [{"type": "text", "text": "Be brief."}]):
        prompt = rendered(folder, Chat([{"role": "system", "content": content}, *ASK], TOOLS))
        assert prompt.startswith("<|im_start|>system\nBe brief.\n")
        assert prompt.count("<|im_start|>system") == 1
        assert "# Tools" in prompt


def test_with_tool_choice_none_nothing_is_told(folder):
    prompt = rendered(folder, Chat(ASK, TOOLS, "none"))
    assert "weather in Paris" in prompt
    assert "<tools>" not in prompt


def test_earlier_calls_and_their_results_are_written_out(folder):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome", "days": 1}'}}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "2"}]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "rainy"}]},
    ]
    prompt = rendered(folder, Chat(messages, TOOLS))
    rome = written("weather", '{"city": "Rome", "days": 1}')
    assert f"<|im_start|>assistant\n{rome}\n{rome}<|im_end|>" in prompt
    results = "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrainy\n</tool_response>"
    assert f"<|im_start|>user\n{results}<|im_end|>" in prompt
    assert len(messages[1]["tool_calls"]) == 2, "the request itself is left alone"


@pytest.mark.parametrize(
    ("call", "place"),
    [({}, "tool_calls[0]"), ({"function": {"name": "f", "arguments": "{"}}, "tool_calls[0].function.arguments")],
)
def test_malformed_calls_in_the_conversation_are_refused(folder, call, place):
    with pytest.raises(InvalidInput) as caught:
        rendered(folder, Chat([*ASK, {"role": "assistant", "content": "", "tool_calls": [call]}], TOOLS))
    assert f"$.messages[1].{place}" in caught.value.message


def test_calls_that_are_no_list_are_refused(folder):
    with pytest.raises(InvalidInput, match=r"tool_calls is no list of calls \(at \$.messages\[1\].tool_calls\)"):
        rendered(folder, Chat([*ASK, {"role": "assistant", "content": "", "tool_calls": 5}], TOOLS))


def test_a_template_that_knows_tools_gets_them_as_they_are(tmp_path):
    template = "{% if tools %}{{ tools | tojson }} use <tool_call>{% endif %}{{ messages[0].content }}"
    seen = []
    speaker = Speaker(tmp_path, template=template, context=1200)
    speaker.says = lambda tokens: seen.append(list(tokens)) or speaker.eos
    speaker.submit(Chat(ASK, TOOLS))
    speaker.run()
    assert speaker.tokenizer.decode(seen[0]).startswith(json.dumps(TOOLS))


def follows(grammars, tokenizer, chat, text):
    constraint = grammars.start(calls_grammar(chat, called(chat)))
    for token in tokenizer.encode(text, special=False):
        if not constraint.mask()[token >> 5] >> (token & 31) & 1:
            return False
        constraint.advance(token)
    return bool(constraint.mask()[EOS >> 5] >> (EOS & 31) & 1)


@pytest.mark.parametrize(
    ("choice", "text", "good"),
    [
        ("auto", "It is sunny. 1 < 2", True),
        ("auto", "", True),
        ("auto", PARIS, True),
        ("auto", "Let me see.\n" + PARIS + "\n" + NOW + "\nDone.", True),
        ("auto", written("rain", "{}"), False),
        ("auto", written("weather", '{"city": "Oslo", "days": 3}'), False),
        ("auto", "Let me see.\n" + written("weather", '{"city": "Rome"}'), False),
        ("auto", "<tool_call>{}</tool_call>", False),
        ("auto", PARIS[:-3], False),
        ("required", PARIS, True),
        ("required", PARIS + "\n" + NOW, True),
        ("required", "It is sunny.", False),
        ("required", "", False),
        ("required", "Let me see.\n" + PARIS, False),
        ("name:weather", PARIS, True),
        ("name:weather", PARIS + "\n" + PARIS, False),
        ("name:weather", NOW, False),
        ("name:now", NOW, True),
        ("name:now", written("now", '{"a": 1}'), False),
    ],
)
def test_what_may_be_said_with_each_tool_choice(grammars, tokenizer, choice, text, good):
    assert follows(grammars, tokenizer, Chat(ASK, TOOLS, choice), text) == good


@pytest.mark.parametrize(
    ("choice", "text", "good"),
    [
        ("auto", "It is sunny.", True),
        ("auto", "Let me see.\n" + PARIS + "\nDone.", True),
        ("auto", PARIS + "\n" + NOW, False),
        ("auto", PARIS + "\n<tool_call>", False),
        ("required", PARIS, True),
        ("required", PARIS + "\n" + NOW, False),
    ],
)
def test_no_second_call_is_written_where_calls_are_not_to_be_parallel(grammars, tokenizer, choice, text, good):
    assert follows(grammars, tokenizer, Chat(ASK, TOOLS, choice, parallel_calls=False), text) == good


@pytest.mark.parametrize(
    ("text", "good"), [('{"sunny": true}', True), (PARIS, True), ("It is sunny.", False), ('{"sunny": 1}', False)]
)
def test_an_answer_in_json_or_a_call(grammars, tokenizer, text, good):
    schema = {"type": "object", "properties": {"sunny": {"type": "boolean"}}, "required": ["sunny"]}
    chat = Chat(ASK, TOOLS)
    grammar = calls_grammar(chat, called(chat), Grammar("json_schema", json.dumps(schema)))
    constraint = grammars.start(grammar)
    for token in tokenizer.encode(text, special=False):
        if not constraint.mask()[token >> 5] >> (token & 31) & 1:
            assert not good
            return
        constraint.advance(token)
    assert good and constraint.mask()[0] >> EOS & 1


@pytest.mark.parametrize("choice", ["required", "name:weather"])
def test_the_arguments_of_a_babbling_model_are_valid(grammars, tokenizer, choice):
    jsonschema = pytest.importorskip("jsonschema_rs")
    grammar = calls_grammar(Chat(ASK, TOOLS, choice), called(Chat(ASK, TOOLS, choice)))
    for seed in range(8):
        constraint, random, said = grammars.start(grammar), np.random.default_rng(seed), []
        for _ in range(400):
            bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
            # Ends as soon as it may, so that it does not babble up to the most calls.
            token = EOS if bits[EOS] else int(random.choice(np.flatnonzero(bits)))
            if token == EOS:
                break
            constraint.advance(token)
            said.append(token)
        text, calls = read([tokenizer.decode(said)])
        if token == EOS:
            assert text == "" and calls
            for call in calls:
                jsonschema.validate(
                    WEATHER if call.name == "weather" else {"maxProperties": 0}, json.loads(call.arguments)
                )


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([{}], "auto", r"at \$\.tools\[0\]"),
        ([TOOLS[0], {"type": "browser"}], "auto", r"at \$\.tools\[1\]"),
        ([{"type": "function", "function": {"name": ""}}], "auto", r"\$\.tools\[0\]\.function\.name"),
        ([{"type": "function", "function": {"name": "f", "parameters": [1]}}], "auto", r"function\.parameters"),
        ([TOOLS[0], TOOLS[0]], "auto", r'two tools are called "weather"'),
        (TOOLS, "sometimes", r'tool_choice is "sometimes"'),
        (TOOLS, "name:wether", r'"wether", which is not in tools. Did you mean "weather"'),
        ([], "required", r"there are no tools"),
        ([], "name:f", r"there are no tools"),
    ],
)
def test_bad_tools_are_refused_with_their_place(tools, choice, message):
    with pytest.raises(InvalidInput, match=message):
        called(Chat(ASK, tools, choice))


def test_a_function_whose_schema_cannot_be_used_is_refused_before_it_runs(tmp_path):
    speaker = Speaker(tmp_path, context=1200)
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "colour"}}}
    with pytest.raises(InvalidInput, match=r"colour \(at \$\.tools\[1\]\.function\.parameters\)") as caught:
        speaker.submit(Chat(ASK, [TOOLS[0], bad]))
    assert "Lark" not in caught.value.message  # which nobody sent
    with pytest.raises(InvalidInput, match=r"^the JSON schema.*shape"):
        speaker.submit(Chat(ASK, TOOLS), grammar=Grammar("json_schema", '{"type": "shape"}'))
    with pytest.raises(InvalidInput, match="regex grammar cannot be joined with tools"):
        speaker.submit(Chat(ASK, TOOLS), grammar=Grammar("regex", "a"))


def test_a_call_is_an_event_and_the_reason_of_the_end(tmp_path):
    speaker = Speaker(tmp_path, "Let me see.\n" + PARIS + "\n" + NOW, context=1200)
    speaker.submit(Chat(ASK, TOOLS))
    speaker.run()
    events = speaker.told[0]
    assert text_of(events) == "Let me see."
    assert [e for e in events if isinstance(e, ToolCall)] == [
        ToolCall(0, 0, "weather", '{"city": "Paris", "days": 3}'),
        ToolCall(0, 1, "now", "{}"),
    ]
    assert [end.reason for end in ends(events)] == ["tool_calls"]


def test_a_call_that_max_tokens_cuts_is_shown_as_text(tmp_path):
    speaker = Speaker(tmp_path, PARIS, context=1200)
    speaker.submit(Chat(ASK, TOOLS), stops=Stops(max_tokens=12))
    speaker.run()
    assert PARIS.startswith(text_of(speaker.told[0])) and text_of(speaker.told[0])
    assert isinstance(speaker.told[0][-1], Finished) and speaker.told[0][-1].reason == "length"


def test_without_tools_or_with_choice_none_tags_are_text(tmp_path):
    speaker = Speaker(tmp_path, PARIS, context=1200)
    for chat in (Chat(ASK), Chat(ASK, TOOLS, "none")):
        speaker.submit(chat)
        speaker.run()
        assert text_of(speaker.told[0]) == PARIS
        assert ends(speaker.told[0])[0].reason == "stop"


def test_a_model_that_would_not_call_is_made_to(tmp_path):
    speaker = Speaker(tmp_path, "It is sunny.", peak=3.0, context=1200)
    speaker.submit(Chat(ASK, TOOLS, "name:weather"), sampling=Sampling(temperature=1.0, seed=1))
    speaker.run()
    (call,) = [e for e in speaker.told[0] if isinstance(e, ToolCall)]
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    assert ends(speaker.told[0])[0].reason == "tool_calls"


def test_names_may_hold_anything(grammars, tokenizer):
    name = 'größe "x" \\ 日本'
    chat = Chat(ASK, [{"type": "function", "function": {"name": name}}], "required")
    text = f'<tool_call>\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {{}}}}\n</tool_call>'
    assert follows(grammars, tokenizer, chat, text)
    assert read([text]) == ("", [Call(name, "{}")])


def test_tags_that_are_tokens_of_their_own_are_said_and_read_too(tmp_path):
    inner = vocabularies.byte_level()
    inner.add_tokens([AddedToken(tag, special=False) for tag in ("<tool_call>", "</tool_call>", "<think>")])
    speaker = Speaker(tmp_path, context=1200, inner=inner)
    assert len(speaker.ids("<tool_call><think>")) == 2
    for choice in ("auto", "required"):
        speaker.says = ("<think>Look.\n" if choice == "auto" else "") + PARIS
        speaker.submit(Chat(ASK, TOOLS, choice))
        speaker.run()
        assert [e.name for e in speaker.told[0] if isinstance(e, ToolCall)] == ["weather"]
        assert text_of(speaker.told[0]) == ("<think>Look." if choice == "auto" else "")
        assert ends(speaker.told[0])[0].reason == "tool_calls"


def test_other_tokens_of_the_tokenizer_may_stand_in_the_text_beside_spelled_tags(tmp_path):
    inner = vocabularies.byte_level()
    inner.add_tokens([AddedToken("<think>", special=False)])
    speaker = Speaker(tmp_path, "<think>Look <think>.\n" + PARIS, context=1200, inner=inner)
    speaker.submit(Chat(ASK, TOOLS))
    speaker.run()
    assert text_of(speaker.told[0]) == "<think>Look <think>."
    assert [e.name for e in speaker.told[0] if isinstance(e, ToolCall)] == ["weather"]
