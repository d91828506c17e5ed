"""The report of load measurements as one HTML file. Knows results, draws them."""

import math
from collections.abc import Sequence
from html import escape

from foretell.bench.measure import Result
from foretell.report.page import COLOURS, Plot, card, decades, line_chart, ms, page, row, span, steps


def render_html(
    results: Sequence[Result], tables: Sequence[Sequence[tuple[str, str]]], ratios: Sequence[tuple[str, ...]]
) -> str:
    """The page: a table a result, the ratios if there are any, and plots with all results in each."""
    cards, plots = [], []
    if ratios:
        head = "<tr><th>A ÷ B<th>ratio<th>95 % interval<th></tr>"
        cards.append(card("Comparison", f"<table>{head}{''.join(map(row, ratios))}</table>", "card wide"))
    for number, (result, rows) in enumerate(zip(results, tables, strict=True)):
        side = f"{'AB'[number]}: " if ratios else ""
        title = f'<span class="key k{number % COLOURS}"></span>{side}{escape(result.name)}'
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in result.notes)
        cards.append(card(title, f"<table>{''.join(map(row, rows))}</table>{notes}"))
    answered = [result for result in results if result.answered]
    if answered:
        plots.append(card("Latency by percentile", _percentiles(results)))
        plots.append(card("How latencies are spread (share of answers)", _spread(results)))
    if any(len(result.timeline) > 1 for result in answered):
        plots.append(card("Answers per second over time", _throughput(results)))
        plots.append(card("Median latency over time", _medians(results)))
    return page("foretell bench", cards, plots)


def _percentiles(results: Sequence[Result]) -> str:
    # Evenly spaced in nines, so that the tail takes as much room as the body.
    lines = [[(-math.log10(1 - q), s * 1e3) for q, s in result.curve] for result in results]
    end = max(x for line in lines for x, _ in line) or 1.0
    ticks = [(-math.log10(1 - q), f"{q * 100:g}") for q in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)]
    low, high = span([y for line in lines for _, y in line])
    plot = Plot((0, end), (math.log10(low), math.log10(high)))
    body = [plot.x_tick(x, f"p{label}") for x, label in ticks if x <= end]
    body += [plot.y_tick(math.log10(y), ms(y)) for y in decades(low, high)]
    for number, line in enumerate(lines):
        body.append(plot.line(number, [(x, math.log10(max(y, low))) for x, y in line]))
    return plot.svg(body)


def _spread(results: Sequence[Result]) -> str:
    bins = [[(math.log10(top * 1e3), n / result.answered) for top, n in result.histogram] for result in results]
    every = [x for line in bins for x, _ in line]
    first, last = min(every) - 0.05, max(every)
    highest = max(y for line in bins for _, y in line)
    plot = Plot((first, last), (0, highest))
    low, high = 10**first, 10**last
    body = [plot.x_tick(math.log10(x), ms(x)) for x in decades(low, high)]
    body += [plot.y_tick(y, f"{y:.0%}") for y in steps(highest)]
    for number, line in enumerate(bins):
        body += [plot.bar(number, x - 0.05, x, y, f"up to {ms(10**x)}: {y:.2%}") for x, y in line if y]
    return plot.svg(body)


def _throughput(results: Sequence[Result]) -> str:
    lines = [[(slot.at_s, slot.per_s) for slot in result.timeline] for result in results]
    return line_chart(lines, "{:g} s".format, "{:,g}".format)


def _medians(results: Sequence[Result]) -> str:
    lines = [
        [(slot.at_s, slot.p50_s * 1e3) for slot in result.timeline if slot.p50_s is not None] for result in results
    ]
    return line_chart(lines, "{:g} s".format, ms)
