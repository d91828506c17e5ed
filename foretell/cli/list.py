"""`foretell list`."""

import msgspec

from foretell.app.packages import open_store
from foretell.cli.console import print_json, print_table
from foretell.cli.options import AsJson, DatabaseUrl, StoreUrl
from foretell.store.store import Store


class Entry(msgspec.Struct):
    """One model of the list; `runtime` and `created` are those of its newest version."""

    name: str
    versions: list[int]
    aliases: dict[str, int]
    runtime: str
    created: str


def run(store: StoreUrl = "", database: DatabaseUrl = "", as_json: AsJson = False) -> None:
    """List the models of the store, their versions and aliases.

    \b
    Examples:
      foretell list
      foretell list --json | jq -r '.[].name'
    """
    with open_store(store, database) as opened:
        entries = [_entry(opened, name) for name in opened.names()]
    if as_json:
        print_json(entries)
    elif not entries:
        print("The store is empty. Register a model with: foretell add NAME PATH")
    else:
        print_table(
            ("NAME", ">NEWEST", "ALIASES", "RUNTIME", "ADDED"),
            [
                (
                    entry.name,
                    entry.versions[-1],
                    ", ".join(f"{alias} → {number}" for alias, number in entry.aliases.items()) or "–",
                    entry.runtime,
                    entry.created[:16].replace("T", " "),
                )
                for entry in entries
            ],
        )


def _entry(store: Store, name: str) -> Entry:
    versions = store.versions(name)
    numbers = [info.number for info in versions]
    return Entry(name, numbers, store.aliases(name), versions[-1].runtime, versions[-1].created)
