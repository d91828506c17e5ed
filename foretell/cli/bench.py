"""`foretell bench`."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from foretell.app.packages import is_path
from foretell.bench.html import render_html
from foretell.bench.http import HttpTarget
from foretell.bench.load import LoadPlan
from foretell.bench.measure import PRICE_PER_CORE_HOUR, Result
from foretell.bench.oip import oip_target
from foretell.bench.processes import find_server
from foretell.bench.report import render_comparison, render_json, render_text, rows_of, write_report
from foretell.bench.run import MeasureSettings, run_bench, run_compare
from foretell.cli.child import ChildServer
from foretell.cli.console import busy, stdout
from foretell.cli.options import AsJson, DatabaseUrl, StoreUrl, TrustCode
from foretell.core.errors import ConfigError


def run(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="REF|URL...", help="A model of the store, a file, or a server; two with --compare."),
    ],
    compare: Annotated[
        bool, typer.Option("--compare", help="Interleave two targets in one run; ratios with confidence intervals.")
    ] = False,
    concurrency: Annotated[str, typer.Option(metavar="N,…", help="Callers of the closed loop.")] = "1,8,64",
    rate: Annotated[
        float, typer.Option(help="Requests per second, arriving at random (open loop); 0 is the closed loop.")
    ] = 0.0,
    duration: Annotated[float, typer.Option(metavar="SECONDS", help="Of each measurement.")] = 5.0,
    rows: Annotated[int, typer.Option(help="Rows of each request.")] = 1,
    binary: Annotated[bool, typer.Option("--binary", help="Send raw tensors instead of JSON.")] = False,
    target_ms: Annotated[float | None, typer.Option(metavar="MS", help="Goodput: answers within this time.")] = None,
    price: Annotated[
        float, typer.Option(metavar="DOLLARS", help="What one core costs an hour, for cost per inference.")
    ] = PRICE_PER_CORE_HOUR,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a report with plots.")] = None,
    trust_code: TrustCode = False,
    store: StoreUrl = "",
    database: DatabaseUrl = "",
    as_json: AsJson = False,
) -> None:
    """Measure latency, throughput, goodput, memory and cost per inference.

    A model of the store is served for the measurement in processes of its own.

    \b
    Examples:
      foretell bench digits
      foretell bench http://127.0.0.1:8080/v2/models/digits --concurrency 64 --duration 10
      foretell bench minilm --rate 50 --target-ms 100 --html report.html
      foretell bench --compare digits@1 digits@2 --concurrency 8
    """
    if len(targets) != (2 if compare else 1):
        raise typer.BadParameter("name one target, or two with --compare", param_hint="REF|URL")
    plans = [
        LoadPlan(concurrency=callers, rate=rate, duration_s=duration).check()
        for callers in ([1] if rate else _numbers(concurrency))
    ]
    flags = ["--trust-code"] if trust_code else []
    flags += [*(["--store", store] if store else []), *(["--database", database] if database else [])]
    with contextlib.ExitStack() as stack:
        opened = [_target(target, flags, rows, binary, stack) for target in targets]
        if compare:
            comparison = run_compare(opened[0], opened[1], plans[0], progress=sys.stderr.isatty())
            stdout().print(render_json(comparison).decode() if as_json else render_comparison(comparison))
            if html:
                write_report(comparison, html)
            return
        results = [_measure(opened[0], plan, target_ms, price) for plan in plans]
    if as_json:
        print(render_json(results).decode())
    else:
        stdout().print(render_text(results))
    if html:
        _write_html(html, results)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f'"{text}" is no list of numbers; write 1,8,64', param_hint="--concurrency") from None


def _target(target: str, flags: list[str], rows: int, binary: bool, stack: contextlib.ExitStack) -> HttpTarget:
    """A URL as it is; anything else is served until `stack` closes."""
    if target.startswith(("http://", "https://")):
        return oip_target(target, rows=rows, binary=binary)
    quiet = ["--port", "0", "--grpc-port", "-1", "--access-log", "none"]
    with busy(f"starting {target}"):
        server = stack.enter_context(ChildServer([target, *quiet, *flags]))
    name, _, version = server.models[0].partition("@")
    found = oip_target(f"{server.url}/v2/models/{name}/versions/{version}", rows=rows, binary=binary)
    found.name = f"{name} ({Path(target).name})" if is_path(target) else f"{name}@{version}"
    return found


def _measure(target: HttpTarget, plan: LoadPlan, target_ms: float | None, price: float) -> Result:
    settings = MeasureSettings(
        target_s=target_ms / 1e3 if target_ms else None,
        server_pid=find_server(target.url) or 0,
        price_per_core_hour=price,
    )
    return run_bench(target, plan, settings, progress=sys.stderr.isatty())


def _write_html(path: Path, results: list[Result]) -> None:
    if path.suffix not in (".html", ".htm"):
        raise ConfigError(f'report "{path}" ends in "{path.suffix}"; name it .html')
    try:
        path.write_text(render_html(results, [rows_of(result) for result in results], []))
    except OSError as error:
        raise ConfigError(f'report "{path}" cannot be written: {error.strerror}') from None
