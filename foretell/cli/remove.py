"""`foretell remove`."""

from typing import Annotated

import typer

from foretell.app.packages import open_store
from foretell.cli.options import DatabaseUrl, StoreUrl
from foretell.core.reference import parse_reference


def run(
    reference: Annotated[str, typer.Argument(metavar="REF", help="name@version; a plain name means its live version.")],
    force: Annotated[bool, typer.Option("--force", help="Also drop the aliases that point at it.")] = False,
    store: StoreUrl = "",
    database: DatabaseUrl = "",
) -> None:
    """Remove one version. Its number is never given again.

    \b
    Examples:
      foretell remove digits@1
      foretell remove digits@2 --force
    """
    with open_store(store, database) as opened:
        print(f"removed {opened.remove(parse_reference(reference), force)}")
