"""Shows results to people and scripts: rich tables, JSON, and (by `html.py`) one HTML file. Computes nothing."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from foretell.bench.compare import Comparison, Ratio
from foretell.bench.html import render_html
from foretell.bench.measure import Result
from foretell.core.errors import ConfigError
from foretell.report.units import dollars, seconds


def rows_of(result: Result) -> list[tuple[str, str]]:
    """What a report says about one result, as (label, text) in order."""
    plan = result.plan
    load = f"open loop, {plan.rate:g} requests/s" if plan.rate else f"closed loop, {plan.concurrency} callers"
    rows = [
        ("load", f"{load}, {result.elapsed_s:.1f} s, {result.rows} row(s) a request"),
        ("throughput", f"{result.per_s:,.1f} requests/s, {result.rows_per_s:,.1f} rows/s"),
    ]
    for point in result.latency:
        text = seconds(point.seconds)
        if point.seconds is None:
            text += f" (needs {point.needed} answers)"
        else:
            text += f" (95 %: {seconds(point.low)} to {seconds(point.high)})"
        rows.append((f"p{point.quantile * 100:g}", text))
    rows.append(("mean, max", f"{seconds(result.mean_s)}, {seconds(result.max_s)}"))
    if result.target_s is not None and result.goodput_per_s is not None:
        rows.append(("goodput", f"{result.goodput_per_s:,.1f} requests/s within {seconds(result.target_s)}"))
    errors = ", ".join(f"{kind} × {count}" for kind, count in result.errors.items()) or "none"
    rows.append(("requests", f"{result.requests:,}; errors: {errors}"))
    return rows + _costs(result)


def render_text(results: Sequence[Result]) -> RenderableType:
    """One column a result, for a rich console."""
    table = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for result in results:
        table.add_column(result.name, overflow="fold")
    columns = [dict(rows_of(result)) for result in results]
    for label in dict.fromkeys(label for column in columns for label in column):
        table.add_row(Text(label, style="dim"), *(column.get(label, "") for column in columns))
    notes = [Text(f"! {note}", style="yellow") for result in results for note in result.notes]
    return Group(table, *notes)


def render_comparison(comparison: Comparison) -> RenderableType:
    """The ratios with what they show, then both sides."""
    table = Table(title="A ÷ B", header_style="bold", box=None, pad_edge=False, title_justify="left")
    for name in ("", "ratio", "95 % interval", ""):
        table.add_column(name)
    for ratio in comparison.ratios:
        table.add_row(*ratio_cells(ratio))
    sides = f"A = {comparison.a.name}, B = {comparison.b.name}; {comparison.rounds} rounds of blocks A B B A"
    return Group(Text(sides), table, Text(), render_text([comparison.a, comparison.b]))


def ratio_cells(ratio: Ratio) -> tuple[str, str, str, str]:
    """Name, value, interval and verdict of a ratio."""
    if ratio.value is None:
        return ratio.name, "unknown", "", "too few answers"
    verdict = f"{ratio.better} is better" if ratio.better else "straddles 1: no difference shown"
    return ratio.name, f"{ratio.value:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}", verdict


def render_json(found: Result | Comparison | Sequence[Result]) -> bytes:
    """Indented JSON of everything in `found`; seconds, bytes and dollars."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2)


def write_report(found: Result | Comparison, path: Path) -> None:
    """Write `path` as JSON or HTML by its suffix. Raises `ConfigError` for another suffix or an unwritable path."""
    if path.suffix == ".json":
        data = render_json(found)
    elif path.suffix in (".html", ".htm"):
        results = [found.a, found.b] if isinstance(found, Comparison) else [found]
        ratios = [ratio_cells(r) for r in found.ratios] if isinstance(found, Comparison) else []
        data = render_html(results, [rows_of(result) for result in results], ratios).encode()
    else:
        raise ConfigError(f'report "{path}" ends in "{path.suffix}"; name it .html or .json')
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f'report "{path}" can\'t be written: {error.strerror}') from error


def _costs(result: Result) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if cost := result.cost:
        whose = " (load generator included)" if cost.shared else ""
        rows.append(("CPU", f"{cost.cpu_s_per_1000:.3f} s per 1,000 inferences{whose}"))
        rows.append(
            (
                "cost",
                f"{dollars(cost.busy_dollars_per_1000)} busy, {dollars(cost.provisioned_dollars_per_1000)} provisioned"
                f" per 1,000 inferences (${cost.price_per_core_hour:g} per core-hour, {cost.cores} cores)",
            )
        )
    if result.processes:
        each = ", ".join(f"{use.name} {use.rss_bytes / 2**20:.0f}" for use in result.processes)
        total = sum(use.rss_bytes for use in result.processes) / 2**20
        rows.append(("memory", f"{total:.0f} MiB resident at most ({each})"))
    if result.cold_start_s is not None:
        rows.append(("cold start", f"{seconds(result.cold_start_s)} to the first answer"))
    rows.append(("load generator", f"{result.generator.cpu_share:.0%} of a core"))
    return rows
