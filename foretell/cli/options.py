"""Options that several verbs share. Declares flags; reads nothing."""

from typing import Annotated

import typer

StoreUrl = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="FORETELL_HOME",
        metavar="URL",
        show_default=False,
        help="Folder or URL of the store; by default the user's data folder.",
    ),
]
DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="FORETELL_DATABASE",
        metavar="URL",
        show_default=False,
        help="Database of the store; by default SQLite inside it.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-code", help="Allow pickles and Python files: they can do anything that you can."),
]
