"""What a job says at its end: a value, and the same as text, JSON and one HTML file."""

from collections.abc import Sequence
from html import escape

import msgspec

from foretell.batch.accuracy import Estimate, Quality, Tally, add, judge
from foretell.batch.ending import Ending
from foretell.report.page import Points, card, line_chart, page, row
from foretell.report.units import dollars, seconds
from foretell.store.job import JobInfo, JobPart

NAMES = ("_report.json", "_report.html")
_SLOTS = 60
_MOST_CLASSES = 25


class Report(msgspec.Struct, frozen=True):
    """A finished job. `rows` of the `read` ones are in the output, `errors` failed, `filtered` were left out.

    `run_s` and `rows_per_s` are of the last run, which read `run_rows` rows; all else is of the whole job.
    `compute_s`: seconds in which replicas ran, added up; `batch_rows`: rows of a request.
    """

    job: str
    model: str
    output: str
    files: int
    parts: int
    read: int
    rows: int
    errors: int
    attempts: int
    run_rows: int
    run_s: float
    compute_s: float
    batch_rows: int
    dollars: float
    size: int
    quality: Quality | None = None
    ending: Ending | None = None

    @property
    def filtered(self) -> int:
        return self.read - self.rows - self.errors

    @property
    def rows_per_s(self) -> float:
        return self.run_rows / max(self.run_s, 1e-9)

    @property
    def dollars_per_1000(self) -> float:
        return self.dollars / max(self.rows, 1) * 1000


def make_report(
    job: JobInfo, parts: Sequence[JobPart], model: str, files: int, batch_rows: int, run_rows: int, run_s: float
) -> Report:
    """Add up the records of a job's parts."""
    tallies = [msgspec.json.decode(part.measures, type=Tally) for part in parts if part.measures]
    return Report(
        job=job.id,
        model=model,
        output=job.output,
        files=files,
        parts=len(parts),
        read=sum(part.read for part in parts),
        rows=sum(part.rows for part in parts),
        errors=sum(part.errors for part in parts),
        attempts=job.attempts,
        run_rows=run_rows,
        run_s=run_s,
        compute_s=sum(part.compute_s for part in parts),
        batch_rows=batch_rows,
        dollars=sum(part.dollars for part in parts),
        size=sum(part.size for part in parts),
        quality=judge(add(tallies)) if tallies else None,
    )


def lines(report: Report) -> list[tuple[str, str]]:
    """What it says to people, as (label, text)."""
    found = [
        ("job", f"{report.job}: {report.model} → {report.output}"),
        ("rows", f"{report.rows:,} in the output, of {report.read:,} read from {report.files} file(s)"),
        ("errors", f"{report.errors:,}" + (" (in the folder _errors)" if report.errors else "")),
    ]
    if report.filtered:
        found.append(("left out", f"{report.filtered:,} by --where"))
    pace = f"{report.rows_per_s:,.0f} rows/s: {report.run_rows:,} rows in {seconds(report.run_s)}"
    again = f", in run {report.attempts} of the job" if report.attempts > 1 else ""
    found.append(("pace", pace + again))
    if report.rows:
        each = seconds(report.compute_s / report.rows * report.batch_rows)
        found.append(("batch time", f"{each} for {report.batch_rows:,} rows; {seconds(report.compute_s)} in all"))
        found.append(("cost", f"{dollars(report.dollars)}, {dollars(report.dollars_per_1000)} per 1,000 rows"))
    if report.quality is not None:
        found += [(estimate.name, told(estimate)) for estimate in report.quality.estimates]
        found.append(("with truth", f"{report.quality.rows:,} rows"))
    return found


def told(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} (95 %: {estimate.low:.4f} to {estimate.high:.4f})"


def render_json(report: Report) -> str:
    """Indented JSON, with what is computed from the fields."""
    document = msgspec.to_builtins(report)
    document |= {"rows_per_s": report.rows_per_s, "dollars_per_1000": report.dollars_per_1000}
    document |= {"filtered": report.filtered}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def render_html(report: Report, parts: Sequence[JobPart]) -> str:
    """One file: the numbers, rows over time, the confusion matrix where there is one."""
    cards = [card("The job", f"<table>{''.join(map(row, lines(report)))}</table>")]
    if report.quality is not None and report.quality.classes:
        cards.append(card("Confusion (rows: truth, columns: said)", _confusion(report.quality)))
    plots = []
    if len(parts) > 1:
        plots.append(card("Rows done over time", line_chart([_over_time(parts)], "{:g} s".format, "{:,g}".format)))
    return page(f"foretell batch {report.model}", cards, plots)


def _confusion(quality: Quality) -> str:
    names = quality.classes[:_MOST_CLASSES]
    head = "<tr><th>" + "".join(f"<th>{escape(name)}" for name in names) + "</tr>"
    body = "".join(
        row([name, *(f"{count:,}" if count else "" for count in counts[: len(names)])])
        for name, counts in zip(names, quality.confusion, strict=False)
    )
    more = len(quality.classes) - len(names)
    note = f'<p class="note">and {more} more classes, in the JSON report</p>' if more > 0 else ""
    return f"<table>{head}{body}</table>{note}"


def _over_time(parts: Sequence[JobPart]) -> Points:
    """Rows read by the time that each part was recorded, thinned out to what can be seen."""
    order = sorted(parts, key=lambda part: part.finished)
    began = order[0].finished
    points, rows = [], 0
    for part in order:
        rows += part.read
        points.append((part.finished - began, float(rows)))
    step = max(1, len(points) // _SLOTS)
    return [*points[::step], points[-1]]
