"""The language model part of RESULTS.md and llm.json, from the records of a run. Knows no engine."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.llm_workloads import DECODE, PROMPT, SAVED, Values
from benchmarks.report import insert
from benchmarks.stats import Summary, ratios, summarise

BEGIN, END = "<!-- llm: begin -->", "<!-- llm: end -->"
OURS, INT8, INSIDE, PLAIN = "foretell", "foretell, int8", "foretell in process", "foretell in process, no drafts"


@dataclass(frozen=True)
class Record:
    """What one engine did in one round of one workload."""

    workload: str
    streams: int
    engine: str
    round: int
    values: Values


@dataclass(frozen=True)
class Goal:
    """`value` of `ours` against that of `theirs` in the same round: at least `least` times as much; without `theirs`
    the value itself.
    """

    workload: str
    streams: int
    value: str
    theirs: str
    least: float
    ours: str = OURS


GOALS = (
    *(Goal("decode", streams, DECODE, "llama.cpp", least) for streams, least in ((1, 1.3), (8, 2.1), (32, 2.2))),
    *(Goal("decode", streams, DECODE, "OpenVINO GenAI", 1.5, ours) for ours in (OURS, INT8) for streams in (1, 8, 32)),
    Goal("prompt", 1, PROMPT, "llama.cpp", 1.6),
    Goal("prefix", 1, SAVED, "", 8.0),
    *(Goal(name, streams, DECODE, PLAIN, 1.3, INSIDE) for name in ("quotes", "edits") for streams in (1, 8)),
    *(Goal("stories", streams, DECODE, PLAIN, 0.97, INSIDE) for streams in (1, 8)),
    Goal("questions", 8, DECODE, PLAIN, 0.97, INSIDE),
    *(Goal("decode", streams, DECODE, PLAIN, 0.97, INSIDE) for streams in (1, 8, 32)),
)


def judge(records: Sequence[Record], goal: Goal) -> Summary | None:
    """The summary over rounds of what the goal is about; None if it was not measured."""
    ours = _by_round(records, goal, goal.ours)
    values = ratios(ours, _by_round(records, goal, goal.theirs)) if goal.theirs else list(ours.values())
    return summarise(values) if values else None


def missed(records: Sequence[Record]) -> int:
    """How many goals were measured and not reached."""
    judged = [(goal, judge(records, goal)) for goal in GOALS]
    return sum(1 for goal, summary in judged if summary and summary.middle < goal.least)


def markdown(
    records: Sequence[Record], settings: dict[str, str], skipped: dict[str, str], heading: Sequence[str]
) -> str:
    """The section: heading, goals, a table a workload, settings, what was skipped."""
    lines = ["## Language models", "", *heading, "", *_goal_table(records)]
    for workload in dict.fromkeys((record.workload, record.streams) for record in records):
        lines += ["", *_table(records, *workload)]
    lines += ["", "How each engine was set:", "", *(f"- {name}: {text}" for name, text in settings.items())]
    if skipped:
        lines += ["", "Not measured:", "", *(f"- {name}: {reason}" for name, reason in skipped.items())]
    lines += [
        "",
        "Numbers are medians over rounds (minimum–maximum). `decode tokens/s` counts while all streams are decoding;",
        "`tokens/s` counts everything, prompts included. Ratios are taken within each round.",
    ]
    return "\n".join(lines)


def write(folder: Path, section: str, records: Sequence[Record], **more: object) -> None:
    """RESULTS.md (between this part's markers) and llm.json in `folder`."""
    results = folder / "RESULTS.md"
    document = results.read_text() if results.exists() else "# Results\n"
    results.write_text(insert(document, section, BEGIN, END))
    data = {**more, "records": [asdict(record) for record in records]}
    (folder / "llm.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _goal_table(records: Sequence[Record]) -> list[str]:
    lines = [
        "| workload | streams | what | of | against | measured (interval) | goal | |",
        "|---|---:|---|---|---|---:|---:|---|",
    ]
    for goal in GOALS:
        summary = judge(records, goal)
        if summary is None:
            continue
        told = f"{summary.middle:.2f} ({summary.low:.2f}–{summary.high:.2f})"
        verdict = "reached" if summary.middle >= goal.least else "**missed**"
        against = goal.theirs or "itself"
        lines.append(
            f"| {goal.workload} | {goal.streams} | {goal.value} | {goal.ours} | {against} | {told} | ≥ {goal.least:g} |"
            f" {verdict} |"
        )
    return lines


def _table(records: Sequence[Record], workload: str, streams: int) -> list[str]:
    here = [record for record in records if (record.workload, record.streams) == (workload, streams)]
    names = list(here[0].values)
    lines = [
        f"| {workload}, {streams} stream{'s' * (streams > 1)} | {' | '.join(names)} |",
        "|---|" + "---:|" * len(names),
    ]
    for engine in dict.fromkeys(record.engine for record in sorted(here, key=lambda record: record.engine)):
        cells = [_cell([r.values[name] for r in here if r.engine == engine]) for name in names]
        lines.append(f"| {engine} | {' | '.join(cells)} |")
    return lines


def _cell(values: Sequence[float]) -> str:
    digits = 0 if median(values) >= 100 else 1
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} ({low}–{high})"


def _by_round(records: Sequence[Record], goal: Goal, engine: str) -> dict[int, float]:
    return {
        r.round: r.values[goal.value]
        for r in records
        if (r.workload, r.streams, r.engine) == (goal.workload, goal.streams, engine)
    }
