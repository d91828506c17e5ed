"""Chat templates: a conversation in OpenAI's shape to the prompt text that a model was trained on.

Templates are rendered in Jinja's sandbox with the settings and functions that transformers gives them. The only
importer of jinja2; knows no tokens.
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from foretell.core.errors import InvalidInput, PackageError
from foretell.core.generation import Chat
from foretell.store.manifest import decode_manifest
from foretell.store.package import MANIFEST

TEMPLATE = "chat_template.jinja"
_OF_THE_CHAT = frozenset({"messages", "tools"})
"""Variables that are checked where the request has them."""
ROLES = ("system", "developer", "user", "assistant", "tool")


class ChatTemplate:
    """A package's chat template. `bos` and `eos` are the texts of the tokens that it may write.

    `knows_tools`: it tells the model of tools, and of calls in the format of `llm.tools`.
    """

    def __init__(
        self, text: str, bos: str = "", eos: str = "", now: Callable[[], datetime] = datetime.now, where: str = TEMPLATE
    ) -> None:
        self._bos, self._eos = bos, eos
        self._template = _compile(text, now, where) if text else None
        self._knows_developer = "developer" in text
        self.knows_tools = "tools" in text and "<tool_call>" in text

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate":
        """The template of a package's folder; one that refuses every chat if there is none.

        Raises `PackageError` when it is no valid template.
        """
        path = Path(folder, TEMPLATE)
        if not path.is_file():
            return cls("")
        options = decode_manifest(Path(folder, MANIFEST).read_bytes(), str(Path(folder, MANIFEST))).llm
        names = _added_tokens(Path(folder, "tokenizer.json"))
        bos, eos = (options.bos, options.eos[:1]) if options else (-1, ())
        return cls(path.read_text("utf-8"), names.get(bos, ""), "".join(names.get(e, "") for e in eos), where=str(path))

    def render(self, chat: Chat) -> str:
        """The prompt of a conversation, up to where the model's answer begins.

        Raises `InvalidInput`: without messages, for roles that nobody knows, parts that are not text, and what the
        template itself refuses.
        """
        if self._template is None:
            raise InvalidInput(
                "this model has no chat template, so it takes no messages; send a prompt to /v1/completions, or add"
                f" the model again with a {TEMPLATE} beside it"
            )
        for name in _OF_THE_CHAT & chat.template_arguments.keys():
            raise InvalidInput(
                f'"{name}" is the request\'s own field, no variable to set (at $.chat_template_kwargs.{name})'
            )
        variables = {
            "messages": self.plain_messages(chat.messages),
            "tools": chat.tools if chat.tools and chat.tool_choice != "none" else None,
            "documents": None,
            "bos_token": self._bos,
            "eos_token": self._eos,
            "add_generation_prompt": True,
            **chat.template_arguments,
        }
        try:
            return self._template.render(variables)
        except TemplateError as error:
            raise InvalidInput(f"the model's chat template refuses this conversation: {error}") from None
        except Exception as error:  # whatever the template's expressions make of unforeseen values
            raise InvalidInput(
                f"the model's chat template fails on this conversation: {type(error).__name__}: {error}"
            ) from None

    def plain_messages(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages with contents that are text, arguments that are objects, and roles that templates know.

        Raises `InvalidInput` with the place of what is none of these. Does nothing to its own results.
        """
        if not messages:
            raise InvalidInput("messages is empty; send at least one message (at $.messages)")
        return [self._message(message, index) for index, message in enumerate(messages)]

    def _message(self, message: dict[str, Any], index: int) -> dict[str, Any]:
        place = f"(at $.messages[{index}]"
        role = message.get("role")
        if role not in ROLES:
            raise InvalidInput(f'a message has the role "{role}"; roles are {", ".join(ROLES)} {place}.role)')
        if role == "developer" and not self._knows_developer:
            role = "system"
        result = {**message, "role": role, "content": _text(message.get("content"), place)}
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise InvalidInput(f"tool_calls is no list of calls {place}.tool_calls)")
        if calls:
            result["tool_calls"] = [
                _tool_call(call, f"{place}.tool_calls[{number}]") for number, call in enumerate(calls)
            ]
        return result


def _text(content: Any, place: str) -> str:
    """A message's content as one text: templates take no parts, and fail on null."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidInput(f"content is neither text nor a list of parts {place}.content)")
    texts = []
    for number, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise InvalidInput(
                f'a part of the content is of type "{kind}"; this model reads text only {place}.content[{number}])'
            )
        texts.append(part["text"])
    return "\n".join(texts)


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    """The call with its arguments as an object: templates write them as JSON themselves."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidInput(f'a tool call needs "function" with "name" and "arguments" {place})')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise InvalidInput(
                f"the arguments of a tool call are no JSON: {error} {place}.function.arguments)"
            ) from None
    return {**call, "function": {**function, "arguments": arguments}}


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks answers for training: the body alone is what we need."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's namespace without names that begin with "_": through them a template could reach Python's insides."""

    def __init__(self, *args: Any, **values: Any) -> None:
        values = dict(*args, **values)
        for name in values:
            _check_name(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:  # no method: attributes of a namespace are the template's values
    if str(name).startswith("_"):
        raise SecurityError(f'a template may not store "{name}" in a namespace')


def _compile(text: str, now: Callable[[], datetime], where: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["dict"] = lambda *args, **values: dict(*args, **values)
    environment.globals["namespace"] = _Namespace
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    try:
        return environment.from_string(text)
    except TemplateSyntaxError as error:
        raise PackageError(f"{where}, line {error.lineno}: {error.message}") from None


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


class _Added(msgspec.Struct):
    id: int
    content: str


class _Tokens(msgspec.Struct):
    added_tokens: list[_Added] = []


def _added_tokens(path: Path) -> dict[int, str]:
    try:
        tokens = msgspec.json.decode(path.read_bytes(), type=_Tokens).added_tokens
    except (OSError, msgspec.DecodeError):
        return {}  # `Tokenizer.load` says what is wrong with it
    return {token.id: token.content for token in tokens}
