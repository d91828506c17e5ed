"""`foretell jobs show`."""

from typing import Annotated

import msgspec
import typer

from foretell.app.packages import open_store
from foretell.batch.spec import decode_spec
from foretell.cli.batch_run import show_report
from foretell.cli.console import print_json, print_table
from foretell.cli.jobs import facts
from foretell.cli.options import AsJson, DatabaseUrl, StoreUrl
from foretell.report.units import dollars, seconds


def run(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, or the start of it.")],
    store: StoreUrl = "",
    database: DatabaseUrl = "",
    as_json: AsJson = False,
) -> None:
    """Explain one job: what it does, how far it is, why it failed, its report.

    \b
    Examples:
      foretell jobs show 3f2a
      foretell jobs show 3f2a --json
    """
    with open_store(store, database) as opened:
        info = opened.jobs.get(job)
        known = facts(opened, info)
    if as_json:
        spec, report = (msgspec.Raw(text.encode()) if text else None for text in (info.spec, info.report))
        print_json({**known, "spec": spec, "report": report})
        return
    known |= {"compute_s": seconds(known["compute_s"]), "dollars": dollars(known["dollars"])}
    if known["state"] in ("queued", "stopped", "failed") and decode_spec(info.spec).calling is None:
        known["go on"] = f"foretell jobs resume {info.id}"
    print_table(("", ""), [(key, value) for key, value in known.items() if value != ""])
    if info.report:
        show_report(info.report, as_json=False)
