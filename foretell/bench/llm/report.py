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
from foretell.bench.page import COLOURS, Points, card, line_chart, ms, page, row
from foretell.bench.report import dollars, seconds
from foretell.core.errors import ConfigError


def rows_of(result: LlmResult) -> list[tuple[str, str]]:
    """What a report says about one load, as (label, text) in order."""
    plan = result.plan
    errors = ", ".join(f"{kind} × {count}" for kind, count in result.errors.items()) or "none"
    rows = [
        ("load", f"{load_of(plan)}, {result.window_s:.1f} s"),
        ("output", f"{result.output_per_s:,.1f} tokens/s"),
        ("output and prompt", f"{result.total_per_s:,.1f} tokens/s"),
        ("requests", f"{result.requests:,} ({result.requests_per_s:.2f}/s)"),
        ("errors", errors),
        ("prompt, answer", f"{result.prompt_tokens:.0f}, {result.output_tokens:.0f} tokens on average"),
    ]
    if result.cached_share:
        rows.append(("prompts from cache", f"{result.cached_share:.0%}"))
    for label, latency in (
        ("first token", result.ttft),
        ("inter-token", result.gaps),
        ("time per token", result.per_token),
        ("whole answer", result.whole),
    ):
        rows += _latency_rows(label, latency)
    if result.goodput_per_s is not None and result.good_share is not None:
        rows.append(
            ("goodput", f"{result.goodput_per_s:.2f} requests/s ({result.good_share:.0%}) within {_asked(result)}")
        )
    if cost := result.cost:
        told = f"{dollars(cost.per_million_output)} output, {dollars(cost.per_million_total)} with prompts"
        rows.append(("cost per million tokens", f"{told} (${cost.price_per_hour:g} an hour)"))
    if result.processes:
        memory = sum(use.rss_bytes for use in result.processes) / 2**20
        cpu = sum(use.cpu_s for use in result.processes) / max(result.elapsed_s, 1e-9)
        rows.append(("server", f"{memory:.0f} MiB resident at most, {cpu:.2f} cores"))
    rows.append(("load generator", f"{result.generator.cpu_share:.0%} of a core"))
    return rows


def render_text(results: Sequence[LlmResult]) -> RenderableType:
    """One column a load, for a rich console."""
    table = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    table.add_column(results[0].name if results else "")
    for result in results:
        table.add_column(load_of(result.plan), overflow="fold")
    columns = [dict(rows_of(result)) for result in results]
    labels = dict.fromkeys(label for column in columns for label in column)
    for label in labels:
        if label != "load":
            table.add_row(Text(label, style="dim"), *(column.get(label, "") for column in columns))
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
    cards, plots = [], []
    for number, result in enumerate(results):
        title = f"{escape(result.name)}, {_key(number, load_of(result.plan))}"
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in result.notes)
        cards.append(card(title, f"<table>{''.join(map(row, rows_of(result)))}</table>{notes}"))
    answered = [result for result in results if result.answered]
    if len(answered) > 1:
        plots += _sweep(answered)
    if answered:
        plots.append(_chart("Time to first token by percentile", _curves(answered, "ttft"), _loads(answered)))
        plots.append(_chart("Inter-token latency by percentile", _curves(answered, "gaps"), _loads(answered)))
        timelines = [[(slot.at_s, slot.per_s) for slot in result.timeline] for result in answered]
        title = "Output tokens per second over time"
        plots.append(_chart(title, timelines, _loads(answered), "{:g} s".format, "{:,g}".format))
    return page(cards, plots)


def _sweep(results: Sequence[LlmResult]) -> list[str]:
    """How the server bends under load: one point a load."""
    ordered = sorted(results, key=_level)
    unit = "/s" if ordered[0].plan.rate else " streams"

    def label(level: float) -> str:
        return f"{level:g}{unit}"

    def over(value: Callable[[LlmResult], float | None]) -> Points:
        return [(_level(result), found) for result in ordered if (found := value(result)) is not None]

    def over_quantiles(latency: Callable[[LlmResult], Latency]) -> list[Points]:
        return [over(lambda result: _ms_of(latency(result), 0)), over(lambda result: _ms_of(latency(result), 2))]

    tokens = [over(lambda result: result.output_per_s), over(lambda result: result.total_per_s)]
    first, gap = over_quantiles(lambda result: result.ttft), over_quantiles(lambda result: result.gaps)
    return [
        _chart("Tokens per second by load", tokens, ["output", "output and prompt"], label, "{:,g}".format),
        _chart("Time to first token by load", first, ["p50", "p99"], label),
        _chart("Inter-token latency by load", gap, ["p50", "p99"], label),
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


def _latency_rows(label: str, latency: Latency) -> list[tuple[str, str]]:
    known = [f"p{point.quantile * 100:g} {seconds(point.seconds)}" for point in latency.points if point.seconds]
    if latency.max_s is None:
        return []
    return [(label, ", ".join([*known, f"mean {seconds(latency.mean_s)}, max {seconds(latency.max_s)}"]))]


def _asked(result: LlmResult) -> str:
    targets = result.targets
    parts = [f"first token {seconds(targets.ttft_s)}"] if targets.ttft_s else []
    parts += [f"{seconds(targets.itl_s)} per token"] if targets.itl_s else []
    return ", ".join(parts)


def _notes(results: Sequence[LlmResult]) -> list[str]:
    """Every note once, with the load it is about where it is not about all."""
    found: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            found.setdefault(note, []).append(load_of(result.plan))
    return [note if len(loads) == len(results) else f"{', '.join(loads)}: {note}" for note, loads in found.items()]
