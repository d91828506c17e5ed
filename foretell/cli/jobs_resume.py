"""`foretell jobs resume`."""

from pathlib import Path
from typing import Annotated

import typer

from foretell.app.config import load_config
from foretell.app.packages import open_store
from foretell.batch.source import Source
from foretell.batch.spec import check_no_calls, decode_spec
from foretell.cli.batch_run import Address, On, ray_address, run_job
from foretell.cli.options import AsJson, DatabaseUrl, StoreUrl, TrustCode


def run(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, or the start of it.")],
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="foretell.toml: settings of the model.")] = None,
    on: On = "local",
    address: Address = "",
    trust_code: TrustCode = False,
    store: StoreUrl = "",
    database: DatabaseUrl = "",
    as_json: AsJson = False,
) -> None:
    """Go on with a job that was interrupted, killed or failed. What is done is not done again.

    \b
    Examples:
      foretell jobs resume 3f2a
      foretell jobs resume 3f2a --on ray --address head:6379
    """
    ray = ray_address(on, address)
    flags = {
        "server": {"trust_code": trust_code or None},
        "store": {"home": store or None, "database": database or None},
    }
    settings = load_config(config, flags)
    with open_store(settings.store.home, settings.store.database) as opened:
        info = opened.jobs.get(job)
        spec = decode_spec(info.spec)
        check_no_calls(info.id, spec)
        run_job(settings, opened, info, Source(spec.reading.paths), as_json, ray)
