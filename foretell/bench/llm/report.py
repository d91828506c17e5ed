"""Shows the measurements of a language model to people: one table with a column a load, and one HTML file with plots.
Computes nothing.
"""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from foretell.bench.llm.measure import Latency, LlmResult
from foretell.bench.llm.run import load_of
from foretell.core.errors import ConfigError
from foretell.report.page import COLOURS, Points, card, line_chart, ms, page, row
from foretell.report.units import dollars, seconds


def rows_of(result: LlmResult) -> list[tuple[str, str]]:
    """What a report says about one load, as (label, text) in order; "–" where there are too few samples."""
    errors = ", ".join(f"{kind} × {count}" for kind, count in result.errors.items()) or "none"
    rows = [
        ("output", f"{result.output_per_s:,.1f} tokens/s"),
        ("output and prompts", f"{result.total_per_s:,.1f} tokens/s"),
    ]
    for label, latency in (
        ("first token", result.ttft),
        ("inter-token", result.gaps),
        ("time per token", result.per_token),
        ("whole answer", result.whole),
    ):
        known = [seconds(point.seconds) if point.seconds is not None else "–" for point in latency.points]
        rows.append((f"{label}: p50, p90, p99", ", ".join(known)))
        rows.append((f"{label}: mean, max", f"{seconds(latency.mean_s)}, {seconds(latency.max_s)}"))
    if result.goodput_per_s is not None and result.good_share is not None:
        rows.append((f"goodput ({_asked(result)})", f"{result.goodput_per_s:.2f} requests/s, {result.good_share:.0%}"))
    rows += [
        ("requests", f"{result.requests:,} in {result.window_s:.1f} s, {result.requests_per_s:.2f}/s"),
        ("errors", errors),
        ("prompt and answer, mean", f"{result.prompt_tokens:.0f} and {result.output_tokens:.0f} tokens"),
        ("prompts from the cache", f"{result.cached_share:.0%}"),
    ]
    return rows + _costs(result)


def _costs(result: LlmResult) -> list[tuple[str, str]]:
    rows = []
    if cost := result.cost:
        label = f"cost per million tokens (${cost.price_per_hour:g} an hour)"
        rows.append((label, f"{dollars(cost.per_million_output)} output, {dollars(cost.per_million_total)} all"))
    if result.processes:
        memory = sum(use.rss_bytes for use in result.processes) / 2**20
        cores = sum(use.cpu_s for use in result.processes) / max(result.elapsed_s, 1e-9)
        rows.append(("server", f"{memory:.0f} MiB at most, {cores:.2f} cores"))
    rows.append(("load generator", f"{result.generator.cpu_share:.0%} of a core"))
    return rows


def render_text(results: Sequence[LlmResult]) -> RenderableType:
    """One column a load, for a rich console."""
    table = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    head, rows = _table(results)
    for name in head:
        table.add_column(name, overflow="fold")
    for label, *cells in rows:
        table.add_row(Text(label, style="dim"), *cells)
    return Group(table, *(Text(f"! {note}", style="yellow") for note in _notes(results)))


def write_html(results: Sequence[LlmResult], path: Path) -> None:
    """Write `path` with a table a load and plots. Raises `ConfigError` for another suffix or an unwritable path."""
    if path.suffix not in (".html", ".htm"):
        raise ConfigError(f'report "{path}" ends in "{path.suffix}"; name it .html')
    try:
        path.write_text(render_html(results), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f'report "{path}" can\'t be written: {error.strerror}') from error


def render_html(results: Sequence[LlmResult]) -> str:
    """The whole page."""
    plots = []
    head, rows = _table(results)
    keys = [_key(number, name) for number, name in enumerate(head[1:])]
    body = "<tr><th>" + "".join(f"<th>{name}" for name in keys) + "</tr>" + "".join(map(row, rows))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in _notes(results))
    table = card(escape(head[0]), f"<table>{body}</table>{notes}", "card wide")
    answered = [result for result in results if result.answered]
    if len(answered) > 1:
        plots += _sweep(answered)
    if answered:
        plots.append(_chart("Time to first token by percentile", _curves(answered, "ttft"), _loads(answered)))
        plots.append(_chart("Inter-token latency by percentile", _curves(answered, "gaps"), _loads(answered)))
        timelines = [[(slot.at_s, slot.per_s) for slot in result.timeline] for result in answered]
        title = "Output tokens per second over time"
        plots.append(_chart(title, timelines, _loads(answered), "{:g} s".format, "{:,g}".format))
    return page("foretell bench llm", [table], plots)


def _sweep(results: Sequence[LlmResult]) -> list[str]:
    """How the server bends under load: one point a load."""
    ordered = sorted(results, key=_level)
    unit = "/s" if ordered[0].plan.rate else " streams"

    def label(level: float) -> str:
        return f"{level:g}{unit}"

    def over(value: Callable[[LlmResult], float | None]) -> Points:
        return [(_level(result), found) for result in ordered if (found := value(result)) is not None]

    def over_quantiles(latency: Callable[[LlmResult], Latency]) -> list[Points]:
        return [
            over(lambda result: _ms_of(latency(result), 0)),
            over(lambda result: _ms_of(latency(result), 1)),
            over(lambda result: _ms_of(latency(result), 2)),
        ]

    quantiles = ["p50", "p90", "p99"]
    tokens = [over(lambda result: result.output_per_s), over(lambda result: result.total_per_s)]
    first, gap = over_quantiles(lambda result: result.ttft), over_quantiles(lambda result: result.gaps)
    return [
        _chart("Tokens per second by load", tokens, ["output", "output and prompt"], label, "{:,g}".format),
        _chart("Time to first token by load", first, quantiles, label),
        _chart("Inter-token latency by load", gap, quantiles, label),
    ]


def _chart(
    title: str,
    lines: Sequence[Points],
    names: Sequence[str],
    x_label: Callable[[float], str] = "p{:g}".format,
    y_label: Callable[[float], str] = ms,
) -> str:
    keys = " ".join(_key(number, name) for number, name in enumerate(names))
    return card(f"{title} &nbsp; {keys}", line_chart(lines, x_label, y_label))


def _curves(results: Sequence[LlmResult], name: str) -> list[Points]:
    return [[(share * 100, value * 1e3) for share, value in getattr(result, name).curve] for result in results]


def _key(number: int, text: str) -> str:
    return f'<span class="key k{number % COLOURS}"></span>{escape(text)}'


def _loads(results: Sequence[LlmResult]) -> list[str]:
    return [load_of(result.plan) for result in results]


def _level(result: LlmResult) -> float:
    return result.plan.rate or float(result.plan.concurrency)


def _ms_of(latency: Latency, point: int) -> float | None:
    value = latency.points[point].seconds
    return None if value is None else value * 1e3


def _table(results: Sequence[LlmResult]) -> tuple[list[str], list[list[str]]]:
    """Head (the model, then each load) and rows, with a cell a load."""
    columns = [dict(rows_of(result)) for result in results]
    labels = dict.fromkeys(label for column in columns for label in column)
    head = [results[0].name if results else "", *_loads(results)]
    return head, [[label, *(column.get(label, "") for column in columns)] for label in labels]


def _asked(result: LlmResult) -> str:
    targets = result.targets
    parts = [f"first token {seconds(targets.ttft_s)}"] if targets.ttft_s else []
    parts += [f"per token {seconds(targets.itl_s)}"] if targets.itl_s else []
    return ", ".join(parts)


def _notes(results: Sequence[LlmResult]) -> list[str]:
    """Every note once, with the load it is about where it is not about all."""
    found: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            found.setdefault(note, []).append(load_of(result.plan))
    return [note if len(loads) == len(results) else f"{', '.join(loads)}: {note}" for note, loads in found.items()]
