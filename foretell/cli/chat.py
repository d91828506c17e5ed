"""`foretell chat`."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from foretell.cli.chat_server import ChatServer, Message
from foretell.cli.child import ChildServer
from foretell.cli.console import busy
from foretell.cli.options import DatabaseUrl, StoreUrl
from foretell.core.errors import ForetellError, InvalidInput, did_you_mean

COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation; the system message stays",
    "/system TEXT": "set the system message and begin anew; without TEXT, show it",
    "/save FILE": "write the conversation as JSON",
    "//TEXT": "say a line that begins with /",
    "/exit": "end (so does Ctrl-D)",
}
# A model's text may hold anything; a terminal should get nothing that moves its cursor or more.
_HARMLESS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def run(
    target: Annotated[str, typer.Argument(metavar="REF|PATH|URL", help="A language model, or a server with one.")],
    model: Annotated[str, typer.Option(help="Which one, where a server has several.")] = "",
    system: Annotated[str, typer.Option(metavar="TEXT", help="The system message.")] = "",
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the likeliest token.", show_default="the model's own")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest answer.", show_default="as far as the context goes")
    ] = None,
    key: Annotated[
        str, typer.Option("--api-key", envvar="OPENAI_API_KEY", help="For servers that want one.", show_default=False)
    ] = "",
    store: StoreUrl = "",
    database: DatabaseUrl = "",
) -> None:
    """Talk to a language model in the terminal.

    A model of the store is served for the time of the talk; a URL may be any server with OpenAI's API. Ctrl-C stops
    an answer, /help lists the commands. Lines piped in are asked one after the other.

    \b
    Examples:
      foretell chat smollm2
      foretell chat smollm2 --system "Answer in one sentence." --temperature 0
      foretell chat http://127.0.0.1:8080 --model smollm2
      echo "How far is the moon?" | foretell chat smollm2
    """
    options = {"temperature": temperature, "max_tokens": max_tokens}
    with contextlib.ExitStack() as stack:
        url = target
        if not target.startswith(("http://", "https://")):
            quiet = ["--port", "0", "--grpc-port", "-1", "--access-log", "none"]
            quiet += [*(["--store", store] if store else []), *(["--database", database] if database else [])]
            with busy(f"starting {target}"):
                server = stack.enter_context(ChildServer([target, *quiet]))
            url, model = server.url, server.models[0]
        asked = {name: value for name, value in options.items() if value is not None}
        talk = Talk(ChatServer(url, model, key), asked, system)
        if sys.stdin.isatty():
            _note(f"{talk.server.model}; Ctrl-C stops an answer, /help lists the commands")
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # gives input() its line editing
        while talk.turn():
            pass


class Talk:
    """A conversation and the commands about it. `options` go along with every question."""

    def __init__(self, server: ChatServer, options: dict[str, Any], system: str = "") -> None:
        self.server = server
        self._options = options
        self._system = system
        self._messages: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """The conversation, the system message first."""
        return [*([{"role": "system", "content": self._system}] if self._system else []), *self._messages]

    def turn(self) -> bool:
        """Read one line and do what it says. False when the talk is over."""
        try:
            line = _ask()
        except EOFError:
            return False
        except KeyboardInterrupt:
            _note("\nCtrl-D or /exit ends")
            return True
        if not line.strip():
            return True
        try:
            if line.startswith("/") and not line.startswith("//"):
                return self.command(line)
            self.say(line.removeprefix("/"))
        except ForetellError as error:
            if not sys.stdin.isatty():
                raise
            typer.secho(f"error: {error.message}", fg=typer.colors.RED, err=True)
        return True

    def command(self, line: str) -> bool:
        """Carry out a line that begins with "/". False for the one that ends the talk."""
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if name == "/exit":
            return False
        if name == "/reset":
            self._messages.clear()
        elif name == "/system":
            if rest:
                self._system = rest
                self._messages.clear()
            else:
                _note(self._system or "there is no system message")
        elif name == "/save":
            self._save(rest)
        elif name == "/help":
            width = max(map(len, COMMANDS))
            for command, meaning in COMMANDS.items():
                _note(f"{command:{width}}  {meaning}")
        else:
            near = did_you_mean(name, [c.split()[0] for c in COMMANDS])
            raise InvalidInput(f'no command "{name}". {near} To say a line that begins with /, double it: //')
        return True

    def say(self, text: str) -> None:
        """Ask, and print the answer as it comes. What was said before Ctrl-C stays in the conversation."""
        question = {"role": "user", "content": text}
        stopped = False
        reply = None
        try:
            reply = self.server.ask([*self.messages, question], self._options)
            for piece in reply:
                sys.stdout.write(piece.translate(_HARMLESS))
                sys.stdout.flush()
        except KeyboardInterrupt:
            stopped = True
        finally:
            if reply is not None:
                reply.close()
                sys.stdout.write("\n")
                sys.stdout.flush()
        if reply is None:
            _note("stopped before it began")
            return
        self._messages += [question, {"role": "assistant", "content": reply.text}]
        speed = f", {reply.tokens_per_s:.1f} tokens/s" if reply.tokens_per_s else ""
        first = f", first after {reply.first_s:.2f} s" if reply.tokens else ""
        _note(f"{reply.tokens} tokens{speed}{first}{' (stopped)' if stopped else ''}")

    def _save(self, path: str) -> None:
        if not path:
            raise InvalidInput("save where? Write /save FILE")
        document = msgspec.json.encode({"model": self.server.model, "messages": self.messages})
        try:
            Path(path).expanduser().write_bytes(msgspec.json.format(document, indent=2) + b"\n")
        except OSError as error:
            raise InvalidInput(f"{path} cannot be written: {error.strerror}") from None
        _note(f"saved {len(self.messages)} messages to {path}")


def _ask() -> str:
    return input("> " if sys.stdin.isatty() else "")


def _note(text: str) -> None:
    """A dim line on standard error, so that standard output holds the answers alone."""
    typer.secho(text, dim=True, err=True)
