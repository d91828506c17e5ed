"""The `foretell` command: finds the verb, loads only its module, and turns errors into one line and an exit code.

Knows no verb's flags. Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
"""

import errno
import importlib
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from foretell import __version__
from foretell.core.errors import ForetellError

VERBS = {
    "add": "Register a trained model as the next version of a name.",
    "list": "List the models of the store, their versions and aliases.",
    "show": "Explain one version: signature, parity, lineage, files, and how to call it.",
    "alias": "Move an alias to a version, or read how it moved.",
    "remove": "Remove a version from the store.",
    "pack": "Make a package of a model without a store.",
    "check": "Run a package's own sample through a real replica and compare.",
    "predict": "Ask a model once: from the store, a file, or a running server.",
    "chat": "Talk to a language model in the terminal.",
    "serve": "Serve models over REST, gRPC and OpenAI's API.",
    "batch": "Run a model over tables or files; resumable, every row once.",
    "jobs": "List the batch jobs.",
    "jobs show": "Explain one job: how far it is, why it failed, its report.",
    "jobs resume": "Go on with a job that was interrupted, killed or failed.",
    "jobs cancel": "End a job for good.",
    "stream": "Run a model on a stream of messages, with a stated guarantee.",
    "bench": "Measure latency, throughput and cost of a model or a server.",
    "bench llm": "Measure a language model: tokens per second, first token, inter-token latency.",
}
"""Every verb and its line in `foretell --help`; verb `x y` lives in `foretell.cli.x_y`, as its function `run`."""


def load_verb(name: str) -> TyperCommand:
    """The complete command of a verb, its module imported."""
    module = importlib.import_module(f"foretell.cli.{name.replace(' ', '_')}")
    single = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings={"max_content_width": 100})
    single.command(name)(module.run)
    command = typer.main.get_command(single)
    command.short_help = VERBS[name]
    command.name = name
    return command  # type: ignore[return-value]


class Verbs(TyperGroup):
    """A group whose verbs are imported when they are called, so that `foretell --help` stays quick."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that knows a verb's name and its line of help."""
        if cmd_name not in VERBS:
            return None
        return TyperCommand(cmd_name, callback=lambda: None, help=VERBS[cmd_name], short_help=VERBS[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if " ".join(args[:2]) in VERBS:
            args = [" ".join(args[:2]), *args[2:]]
        name, command, rest = super().resolve_command(ctx, args)
        return name, (load_verb(name) if name in VERBS else command), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ForetellError as error:
            if ctx.params.get("debug"):
                raise
            fail(error.message)
        except Exception as error:
            # The command line's own endings carry an exit code or are aborts; a closed pipe is no failure of ours.
            ours = hasattr(error, "exit_code") or isinstance(error, typer.Abort)
            if ours or ctx.params.get("debug") or getattr(error, "errno", None) == errno.EPIPE:
                raise
            fail(f"{type(error).__name__}: {error} (this should not happen; foretell --debug shows where)")
        raise typer.Exit(1)


def fail(message: str) -> None:
    """One red line on standard error."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)


# No markup here: what renders it takes longer to import than everything else that `foretell --help` needs.
app = typer.Typer(
    cls=Verbs, name="foretell", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"foretell {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    """foretell runs trained models in production.

    Start with: foretell add NAME PATH, then foretell serve NAME.
    """


def command() -> Verbs:
    """The whole command tree, verbs not loaded."""
    return typer.main.get_command(app)  # type: ignore[return-value]


def main() -> None:
    """Entry point of the `foretell` script."""
    command().main(args=sys.argv[1:], prog_name="foretell")
