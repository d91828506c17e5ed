"""`foretell alias`."""

from typing import Annotated

import typer

from foretell.app.packages import open_store
from foretell.cli.console import print_json, print_table
from foretell.cli.options import AsJson, DatabaseUrl, StoreUrl
from foretell.store.version import ANY, AliasChange


def run(
    name: Annotated[str, typer.Argument(help="The model.")],
    alias: Annotated[str, typer.Argument(help="The alias, such as live or candidate.")] = "",
    version: Annotated[str, typer.Argument(help="The version number it shall mean.")] = "",
    expect: Annotated[
        int | None,
        typer.Option(metavar="N", help="Move it only if it means version N now (0: only if it does not exist)."),
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Remove the alias.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Print every move, oldest first.")] = False,
    store: StoreUrl = "",
    database: DatabaseUrl = "",
    as_json: AsJson = False,
) -> None:
    """Move an alias to a version, or read the aliases. Servers that follow the alias switch by themselves.

    \b
    Examples:
      foretell alias digits                     what there is
      foretell alias digits live 2              serve version 2 wherever "digits" is asked for
      foretell alias digits live 2 --expect 1   …unless somebody else moved it first
      foretell alias digits --history
    """
    expected = ANY if expect is None else (expect or None)
    with open_store(store, database) as opened:
        if history:
            opened.versions(name)
            changes = [c for c in opened.alias_history(name) if alias in ("", c.alias)]
            _print_changes(changes, as_json)
        elif drop and alias and not version:
            _print_change(opened.remove_alias(name, alias, expected), as_json)
        elif alias and version:
            if not version.removeprefix("v").isdigit():
                raise typer.BadParameter(f'"{version}" is not a version number', param_hint="VERSION")
            number = int(version.removeprefix("v"))
            _print_change(opened.set_alias(name, alias, number, expected), as_json)
        elif alias or drop:
            raise typer.BadParameter("say which version the alias shall mean, or --drop", param_hint="VERSION")
        else:
            opened.versions(name)
            _print_aliases(opened.aliases(name), as_json)


def _print_change(change: AliasChange, as_json: bool) -> None:
    if as_json:
        print_json(change)
    else:
        before = "nothing" if change.before is None else change.before
        after = "nothing" if change.after is None else change.after
        print(f"{change.name}@{change.alias}: {before} → {after}")


def _print_changes(changes: list[AliasChange], as_json: bool) -> None:
    if as_json:
        print_json(changes)
    else:
        print_table(
            ("AT", "ALIAS", ">FROM", ">TO"), [(c.at, c.alias, c.before or "–", c.after or "–") for c in changes]
        )


def _print_aliases(aliases: dict[str, int], as_json: bool) -> None:
    if as_json:
        print_json(aliases)
    elif not aliases:
        print("No aliases: the name means its newest version.")
    else:
        print_table(("ALIAS", ">VERSION"), sorted(aliases.items()))
