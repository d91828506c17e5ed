"""RESULTS.md, results.json and the picture, from the records of a run. Knows nothing of servers."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median

from benchmarks.goals import CEILING, GOALS, LIMITS, Goal
from benchmarks.rounds import Record
from benchmarks.stats import Summary, ratios, summarise

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def by_round(records: Sequence[Record], workload: str, name: str, clients: int, p99: bool = False) -> dict[int, float]:
    """Rate (or p99) of each round; a ceiling is recorded at 0 clients and counts for all of them."""
    level = 0 if name == CEILING else clients
    return {
        r.round: r.p99_ms if p99 else r.rate
        for r in records
        if (r.workload, r.name, r.clients) == (workload, name, level)
    }


def judge(records: Sequence[Record], goal: Goal) -> tuple[Summary, bool] | None:
    """The summary of the rounds' ratios and whether their median reaches the goal; None if not measured."""
    ours = by_round(records, goal.workload, goal.ours, goal.clients, goal.latency)
    theirs = by_round(records, goal.workload, goal.theirs, goal.clients, goal.latency)
    values = ratios(ours, theirs)
    if not values:
        return None
    summary = summarise(values)
    return summary, summary.middle <= goal.least if goal.latency else summary.middle >= goal.least


def _goal_table(records: Sequence[Record]) -> list[str]:
    lines = [
        "| workload | foretell against | clients | ratio (interval) | goal | |",
        "|---|---|---:|---:|---:|---|",
    ]
    for goal in GOALS:
        judged = judge(records, goal)
        if judged is None:
            continue
        summary, reached = judged
        what = f"{goal.theirs}, p99" if goal.latency else goal.theirs
        sign = "≤" if goal.latency else "≥"
        ratio = f"{summary.middle:.2f} ({summary.low:.2f}–{summary.high:.2f})"
        verdict = "reached" if reached else "**missed**"
        lines.append(f"| {goal.workload} | {what} | {goal.clients} | {ratio} | {sign} {goal.least:g} | {verdict} |")
    return lines


def _rate_table(records: Sequence[Record], workload: str) -> list[str]:
    lines = [
        "| server | clients | requests/s, median (min–max) | p50 ms | p99 ms | CPU µs per request | errors |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    cells = sorted({(r.clients, r.name) for r in records if r.workload == workload})
    for clients, name in cells:
        here = [r for r in records if (r.workload, r.name, r.clients) == (workload, name, clients)]
        rates = [r.rate for r in here]
        shown = f"{median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"
        cpu = [r.cpu_us for r in here if not math.isnan(r.cpu_us)]
        spent = f"{median(cpu):,.0f}" if cpu else "–"
        p50, p99 = _middle([r.p50_ms for r in here]), _middle([r.p99_ms for r in here])
        lines.append(
            f"| {name} | {clients or '–'} | {shown} | {p50} | {p99} | {spent} | {sum(r.errors for r in here)} |"
        )
    return lines


def _middle(values: Sequence[float]) -> str:
    finite = [v for v in values if not math.isnan(v)]
    return f"{median(finite):.2f}" if finite else "–"


def _over(name: str, value: float) -> str:
    limit = next((most for start, most in LIMITS if name.startswith(start)), None)
    if limit is None:
        return ""
    return f" (limit {limit:g}: {'kept' if value < limit else '**missed**'})"


def markdown(
    records: Sequence[Record],
    facts: dict[str, float],
    settings: dict[str, str],
    skipped: dict[str, str],
    heading: Sequence[str],
) -> str:
    """The section between the markers: heading lines, goals, a table per workload, settings, what was skipped."""
    lines = [*heading, "", "### Against the goals", "", *_goal_table(records)]
    for workload in dict.fromkeys(r.workload for r in records):
        lines += ["", f"### {workload}", "", *_rate_table(records, workload)]
    lines += ["", "### Other facts", ""]
    lines += [f"- {name}: {value:,.2f}{_over(name, value)}" for name, value in facts.items()]
    lines += ["", "### How each server was set", ""]
    lines += [f"- {name}: {text}" for name, text in settings.items()]
    if skipped:
        lines += ["", "### Not measured", "", *(f"- {name}: {reason}" for name, reason in skipped.items())]
    lines += [
        "",
        "Ratios are taken within each round and then their median; the interval is a pair of order statistics of",
        "those ratios (95 % where six rounds or more allow it, else minimum and maximum).",
    ]
    return "\n".join(lines)


def insert(document: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """`document` with what stands between the markers replaced; markers are appended where there are none."""
    block = f"{begin}\n{section}\n{end}"
    if begin in document and end in document:
        before, rest = document.split(begin, 1)
        return before + block + rest.split(end, 1)[1]
    return f"{document.rstrip()}\n\n{block}\n"


def as_json(
    records: Sequence[Record],
    facts: dict[str, float],
    settings: dict[str, str],
    skipped: dict[str, str],
    **more: object,
) -> str:
    document = {
        **more,
        "facts": facts,
        "settings": settings,
        "skipped": skipped,
        "records": [
            {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.document().items()} for r in records
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def picture(records: Sequence[Record], workload: str, clients: int, title: str) -> str:
    """A horizontal bar chart as SVG: median requests/s of each server, with a line from minimum to maximum."""
    names = {r.name for r in records if r.workload == workload and r.clients == clients}
    rates = {name: list(by_round(records, workload, name, clients).values()) for name in names}
    order = sorted(names, key=lambda n: -median(rates[n]))
    top = max((max(v) for v in rates.values()), default=1.0) or 1.0
    height, left, width = 34 * len(order) + 54, 150, 420
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{height}" viewBox="0 0 680 {height}"'
        ' font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="680" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="15" font-weight="600" fill="#1f2328">{escape(title)}</text>',
    ]
    for i, name in enumerate(order):
        y, values = 44 + 34 * i, rates[name]
        long, low, high = (left + width * v / top for v in (median(values), min(values), max(values)))
        colour = "#0b6e4f" if name.startswith("foretell") else "#9aa4b2"
        parts += [
            f'<text x="{left - 10}" y="{y + 16}" text-anchor="end" fill="#1f2328">{escape(name)}</text>',
            f'<rect x="{left}" y="{y}" width="{long - left:.1f}" height="22" rx="2" fill="{colour}"/>',
            f'<path d="M{low:.1f} {y + 11}H{high:.1f}" stroke="#1f2328" stroke-width="1.5"/>',
            f'<text x="{max(long, high) + 8:.1f}" y="{y + 16}" fill="#1f2328">{median(values):,.0f}/s</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(folder: Path, section: str, data: str, svg: str) -> None:
    """RESULTS.md (between its markers), results.json and results.svg in `folder`."""
    results = folder / "RESULTS.md"
    document = results.read_text() if results.exists() else "# Results\n"
    results.write_text(insert(document, section))
    (folder / "results.json").write_text(data)
    if svg:
        (folder / "results.svg").write_text(svg)
