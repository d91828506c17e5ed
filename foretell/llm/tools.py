"""Function calling: what the model is told of a chat's tools, what it may write, and how calls are read from its text.

The format is Hermes' and Qwen's: lines of `<tool_call>{"name": …, "arguments": {…}}</tool_call>`. Templates that know
it tell the model about the tools themselves; for all others the tools are described in the system message. Knows text
only, no tokens.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from foretell.core.errors import InvalidInput, did_you_mean
from foretell.core.generation import Chat, Grammar
from foretell.llm.grammar import SPACES

BEGIN, END = "<tool_call>", "</tool_call>"
_RESULT, _RESULT_END = "<tool_response>", "</tool_response>"
_MOST_CALLS = 16
"""Calls in one answer, so that a weak model that was told to call does not do so until its context is full."""
_NAMED = "name:"
_UNDECIDED = re.compile(r"\s*(?:" + "|".join(BEGIN[:size] for size in range(len(BEGIN), 0, -1)) + r")?\Z")
"""The end of a text that may turn out to stand before, or to be, the beginning of a call."""


class Call(NamedTuple):
    """`arguments` is JSON text, as the model wrote it."""

    name: str
    arguments: str


def called(chat: Chat) -> list[dict[str, Any]]:
    """The functions that the answer may call: [] for tool_choice none. Raises `InvalidInput` with the JSON path."""
    functions = [_function(tool, f"$.tools[{number}]") for number, tool in enumerate(chat.tools)]
    names = [function["name"] for function in functions]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(f'two tools are called "{twice}"; give each its own name (at $.tools)')
    choice = chat.tool_choice
    if choice in ("none", "auto"):
        return [] if choice == "none" else functions
    if choice != "required" and not choice.startswith(_NAMED):
        raise InvalidInput(
            f'tool_choice is "{choice}"; expected none, auto, required, or a function of tools (at $.tool_choice)'
        )
    if not functions:
        raise InvalidInput("tool_choice demands a call, but there are no tools (at $.tool_choice)")
    if choice == "required":
        return functions
    named = [function for function in functions if function["name"] == choice.removeprefix(_NAMED)]
    if not named:
        hint = did_you_mean(choice.removeprefix(_NAMED), names)
        raise InvalidInput(
            f'tool_choice names "{choice.removeprefix(_NAMED)}", which is not in tools. {hint} (at $.tool_choice)'
        )
    return named


class Tokens(NamedTuple):
    """What the tokenizer has to do with the format. `tags`: BEGIN and END are tokens of their own, which is then the
    way to write them. `others`: ids of further tokens that grammars know by id only and that any text may hold."""

    tags: bool = False
    others: Sequence[int] = ()


def calls_grammar(
    chat: Chat, functions: Sequence[dict[str, Any]], answer: Grammar | None = None, tokens: Tokens = Tokens()
) -> Grammar:
    """What the model may write: calls whose arguments are valid against the function's schema, and with tool_choice
    auto also any text before, between and after them, or instead of them what `answer` (JSON) allows."""
    begin, end = (BEGIN, END) if tokens.tags else (f'"{BEGIN}"', f'"{END}"')
    bodies = [f"body{number}" for number in range(len(functions))]
    rules = [
        f'{body}: {json.dumps(_opening(function), ensure_ascii=False)} %json {parameters_schema(function)} "}}"'
        for body, function in zip(bodies, functions, strict=True)
    ]
    rules += [f"body: {' | '.join(bodies)}", f'call: {begin} "\\n" body "\\n" {end}']
    several = f'call ("\\n" call){{0,{_MOST_CALLS - 1}}}' if chat.parallel_calls else "call"
    if chat.tool_choice != "auto":
        rules.append("start: call" if chat.tool_choice.startswith(_NAMED) else f"start: {several}")
    elif answer is not None:
        rules += [f"start: answer | {several}", f"answer: %json {json.dumps(_with_spaces(_schema_of(answer)))}"]
    else:
        other = f"PLAIN <[{','.join(map(str, tokens.others))}]>" if tokens.others else ""
        if chat.parallel_calls:
            rules.append(f"start: (spoken{other and ' | ' + other})* PLAIN")
        else:
            others = other and f"({other})* "
            rules.append(f"start: {others}(spoken {others})? PLAIN")
        # Without the tag spelled out, which would read as a call that nobody checks.
        rules.append(rf"PLAIN: /(.|\n)*/ & ~/(.|\n)*{BEGIN}(.|\n)*/")
        if tokens.tags:
            rules.append("spoken: PLAIN call")
        else:
            # The lazy head ends where the tag does: from there on the grammar of calls decides.
            rules += [f'spoken: head "\\n" body "\\n" {end}', rf"head[lazy]: /(.|\n)*/ {begin}"]
    return Grammar("lark", "\n".join(rules) + "\n")


def described(chat: Chat) -> Chat:
    """The chat for a template that does not know this format: tools, calls and their results written out as text.

    Its messages are those of `ChatTemplate.plain_messages`.
    """
    messages: list[dict[str, Any]] = []
    for message in chat.messages:
        if message["role"] == "tool":
            _add_result(messages, message["content"])
        elif message.get("tool_calls"):
            messages.append(_with_calls_written(message))
        else:
            messages.append(message)
    if chat.tools and chat.tool_choice != "none":
        text = _description(chat)
        if messages[0]["role"] in ("system", "developer"):
            messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        else:
            messages.insert(0, {"role": "system", "content": text})
    return msgspec.structs.replace(chat, messages=messages, tools=[])


class ToolParser:
    """Reads one choice's text as it comes: plain text on the one hand, whole calls on the other.

    White space around calls belongs to neither.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._held = ""
        self._gap = ""
        """The white space before the call that is being read."""
        self._inside = False

    def push(self, text: str) -> tuple[str, list[Call]]:
        """(text that is certainly none of a call, calls that are complete)."""
        self._held += text
        shown, calls = [], []
        while True:
            if not self._inside:
                before, tag, after = self._held.partition(BEGIN)
                if not tag:
                    shown.append(self._release())
                    break
                shown.append(before.rstrip())
                self._gap = before[len(shown[-1]) :]
                self._inside, self._held = True, after
            found = _first_call(self._held)
            if found is None:
                break
            call, self._held = found
            calls.append(call)
            self._inside = False
        self.calls += len(calls)
        return "".join(shown), calls

    def flush(self) -> str:
        """What is left when the text ends: a call that was cut off is shown as the text it is."""
        held, self._held = self._held, ""
        if self._inside:
            self._inside = False
            return self._gap + BEGIN + held
        return held.rstrip() if self.calls else held

    def _release(self) -> str:
        undecided = _UNDECIDED.search(self._held)
        at = undecided.start() if undecided else len(self._held)
        shown, self._held = self._held[:at], self._held[at:]
        return shown


class _Written(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


def _first_call(text: str) -> tuple[Call, str] | None:
    """The call that `text` begins with and what follows it; None while it is not complete.

    The end tag may also stand in a string of the arguments: then what comes before it is no JSON.
    """
    end = text.find(END)
    while end >= 0:
        try:
            written = msgspec.json.decode(text[:end].encode(), type=_Written)
            return Call(written.name, bytes(written.arguments).decode()), text[end + len(END) :]
        except msgspec.DecodeError:
            end = text.find(END, end + 1)
    return None


def _function(tool: Any, place: str) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        raise InvalidInput(f'a tool must be {{"type": "function", "function": {{"name": …}}}} (at {place})')
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidInput(f"a function needs a name, which is text (at {place}.function.name)")
    if not isinstance(function.get("parameters") or {}, dict):
        raise InvalidInput(f"parameters must be a JSON schema, which is an object (at {place}.function.parameters)")
    return function


def _opening(function: dict[str, Any]) -> str:
    return f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": '


def parameters_schema(function: dict[str, Any]) -> str:
    """What the arguments of a function must fit, as JSON; a function without parameters takes none."""
    parameters = function.get("parameters")
    if not parameters:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    return json.dumps(_with_spaces(parameters if "type" in parameters else {"type": "object", **parameters}))


def _with_spaces(schema: Any) -> Any:
    return {"x-guidance": {"whitespace_pattern": SPACES}, **schema} if isinstance(schema, dict) else schema


def _schema_of(answer: Grammar) -> Any:
    if answer.kind == "json":
        return {"type": "object"}
    if answer.kind != "json_schema":
        raise InvalidInput(
            f"a {answer.kind} grammar cannot be joined with tools; leave one of them out, or set tool_choice to"
            ' "none" or "required"'
        )
    try:
        return json.loads(answer.text)
    except ValueError as error:
        raise InvalidInput(f"the JSON schema is no JSON: {error}") from None


def _add_result(messages: list[dict[str, Any]], result: str) -> None:
    """A function's result, as the user's turn: templates that know no tools know no such role. Results in a row are
    one turn, as many templates want turns to alternate."""
    text = f"{_RESULT}\n{result}\n{_RESULT_END}"
    if messages and messages[-1]["role"] == "user" and messages[-1]["content"].startswith(_RESULT):
        text = f"{messages.pop()['content']}\n{text}"
    messages.append({"role": "user", "content": text})


def _with_calls_written(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [message["content"]] if message["content"] else []
    for call in message["tool_calls"]:
        written = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        blocks.append(f"{BEGIN}\n{json.dumps(written, ensure_ascii=False)}\n{END}")
    return {"role": "assistant", "content": "\n".join(blocks)}


def _description(chat: Chat) -> str:
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in chat.tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{signatures}\n</tools>"
        "\n\nFor each function call, return a json object with function name and arguments within"
        f" {BEGIN}{END} XML tags:\n"
        f'{BEGIN}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{END}'
    )
