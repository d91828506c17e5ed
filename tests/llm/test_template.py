"""Conversations become prompts exactly as transformers makes them, and what cannot be rendered is a clear error."""

from datetime import datetime

import pytest

from foretell.core.errors import InvalidInput, PackageError
from foretell.core.generation import Chat
from foretell.core.tensor import Signature, TensorSpec
from foretell.llm.template import ChatTemplate
from foretell.store.manifest import LlmOptions, Manifest, encode_manifest
from tests.llm import vocabularies

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = """{{- bos_token }}
{%- set ns = namespace(first=true) %}
{%- if tools %}
    {%- for tool in tools %}
{{ tool | tojson(indent=2) }}
    {%- endfor %}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'system' and not ns.first %}{{ raise_exception('the system message must come first') }}{% endif %}
    {%- set ns.first = false %}
    {%- if m.tool_calls %}
        {%- for call in m.tool_calls %}
[{{ call.function.name }}: {{ call.function.arguments | tojson }}]
        {%- endfor %}
        {%- continue %}
    {%- endif %}
    {%- generation %}
<{{ m.role }}> {{ m.content | trim }}{{ eos_token }}
    {%- endgeneration %}
{%- endfor %}
{%- if enable_thinking is defined and not enable_thinking %}
(no thinking)
{%- endif %}
{%- if add_generation_prompt %}
<assistant> {% endif %}"""
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "x": "<é&'\">"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
CHATS = {
    "one message": [{"role": "user", "content": "Hi"}],
    "several": [
        {"role": "system", "content": "Be <brief> & kind."},
        {"role": "user", "content": "Grüezi\n"},
        {"role": "assistant", "content": "Hoi"},
        {"role": "user", "content": "?"},
    ],
}


@pytest.mark.parametrize("text", [CHATML, TOOLS], ids=["chatml", "tools"])
@pytest.mark.parametrize("messages", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["no tools", "tools"])
def test_prompts_are_those_of_transformers(text, messages, tools):
    module = pytest.importorskip("transformers.utils.chat_template_utils", reason="transformers is not installed")
    arguments = {"enable_thinking": False}
    expected, _ = module.render_jinja_template(
        [messages], tools or None, chat_template=text, add_generation_prompt=True, bos_token="<s>", **arguments,
        eos_token="</s>",
    )  # fmt: skip
    template = ChatTemplate(text, "<s>", "</s>")
    assert template.render(Chat(messages, tools, template_arguments=arguments)) == expected[0]


def test_calls_of_tools_reach_the_template_as_objects_and_null_content_as_nothing():
    messages = [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": None}]
    text = ChatTemplate(TOOLS).render(Chat(messages, [WEATHER]))
    assert '[weather: {"city": "Zürich"}]' in text
    assert "<é&'\\\">" in text
    assert text.endswith("<tool> <assistant> ")


def test_tools_that_must_not_be_called_are_not_told():
    assert "weather" not in ChatTemplate(TOOLS).render(Chat(CHATS["one message"], [WEATHER], tool_choice="none"))


def test_a_developer_is_a_system_where_the_template_knows_none():
    messages = [{"role": "developer", "content": "x"}]
    assert "<|im_start|>system\nx" in ChatTemplate(CHATML).render(Chat(messages))
    assert ChatTemplate("{% if messages[0].role == 'developer' %}yes{% endif %}").render(Chat(messages)) == "yes"


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert "user\na\nb<" in ChatTemplate(CHATML).render(Chat([{"role": "user", "content": parts}]))


def test_the_date_is_the_clock_s():
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", now=lambda: datetime(2024, 2, 29))
    assert template.render(Chat(CHATS["one message"])) == "2024-02-29"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "messages is empty"),
        ([{"role": "wizard", "content": "x"}], r'role "wizard".*\$\.messages\[0\]\.role'),
        ([{"content": "x"}], 'role "None"'),
        ([{"role": "user", "content": 5}], "neither text nor a list"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            r'"image_url".*\$\.messages\[0\]\.content\[0\]',
        ),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "are no JSON"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], 'needs "function"'),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "system message must come first"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_is_a_clear_error(messages, reason):
    with pytest.raises(InvalidInput, match=reason):
        ChatTemplate(TOOLS).render(Chat(messages))


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set n = namespace(_x=1) %}",
        "{% set n = namespace() %}{% set n.__init__ = 1 %}",
        "{{ messages[0].content + 5 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_a_template_that_reaches_for_more_than_its_data_is_stopped(text):
    with pytest.raises(InvalidInput, match="chat template"):
        ChatTemplate(text + "{% if 1 %}{% endif %}").render(Chat(CHATS["one message"]))


def test_a_template_with_a_mistake_names_its_line(tmp_path):
    with pytest.raises(PackageError, match="line 2"):
        ChatTemplate("ok\n{% if %}")


def test_a_package_gives_the_template_its_own_first_and_last_token(tmp_path):
    folder = vocabularies.save(vocabularies.byte_level(), tmp_path)
    text = TensorSpec("t", "BYTES", (1,))
    manifest = Manifest(
        "llm", "model.onnx", Signature((text,), (text,)), llm=LlmOptions(8, 600, 1, 1, 8, bos=1, eos=(4, 2))
    )
    (folder / "model.toml").write_text(encode_manifest(manifest))
    with pytest.raises(InvalidInput, match="no chat template"):
        ChatTemplate.load(folder).render(Chat(CHATS["one message"]))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    assert ChatTemplate.load(folder).render(Chat(CHATS["one message"])) == "<s>Hi<|im_end|>"
