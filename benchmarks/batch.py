"""Batch jobs beside onnxruntime in process, a plain script and Ray Data: `python -m benchmarks.batch [--quick]`.

The same ONNX file and the same Parquet rows for all, one at a time, in shuffled order within a round. A rate counts
from the loaded model on, as the job's own report and each script's clock have it; `wall` is the whole command. The
ceiling is the fastest of processes × threads × batch sizes on rows that lie in memory: it neither reads nor writes, so
a model that costs less than its rows' way from and to the file (digits) is far from it whoever runs it. The second in
which a job finds its sizes counts, too: rows are so many that this is a few percent.
"""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from benchmarks import models
from benchmarks.batch_contenders import (
    Run,
    checkpoints,
    engine,
    generating_job,
    job,
    prompts_file,
    rows_file,
    script,
)
from benchmarks.ceiling import Ceiling, search
from benchmarks.environments import Unavailable
from benchmarks.models import Model
from benchmarks.report import insert
from benchmarks.run import processor
from benchmarks.stats import ratios, summarise

BEGIN, END = "<!-- batch: begin -->", "<!-- batch: end -->"
ROWS = {"digits": 1_000_000, "embedder": 3_000, "image": 3_200, "smollm2": 256}
BATCHES = {"digits": (256, 1024, 4096), "embedder": (8, 16, 32), "image": (4, 8, 16)}
OURS, CEILING = "foretell batch", "onnxruntime, rows in memory"
LOOP, FRAMES, RAY = "pyarrow + onnxruntime", "pandas + onnxruntime", "Ray Data map_batches"
ENGINE = "the engine alone, 64 at a time"
GOALS = {CEILING: 0.9, LOOP: 0.9, FRAMES: 1.0, RAY: 1.0, ENGINE: 0.95}
MOST_MB, MOST_SHARE = 1000, 0.02
Turn = Callable[[], Run]


def turns_of(model: Model, source: Path, folder: Path, ceiling: Ceiling) -> dict[str, Turn]:
    """Every contender, by name; scripts get the ceiling's best batch size."""
    batch = ceiling.setup.batch
    return {
        CEILING: lambda: Run(ceiling.measure(3.0)),
        OURS: lambda: job(model, source, folder),
        LOOP: lambda: script("loop", model, source, folder, batch),
        FRAMES: lambda: script("frames", model, source, folder, batch),
        RAY: lambda: script("ray_data", model, source, folder, batch),
    }


def play(name: str, turns: dict[str, Turn], rounds: int) -> dict[str, dict[int, Run]]:
    """Every contender in every round, in shuffled order."""
    runs: dict[str, dict[int, Run]] = {turn: {} for turn in turns}
    for number in range(rounds):
        for turn in random.sample(list(turns), len(turns)):
            print(f"{name}: round {number + 1} of {rounds}, {turn}", file=sys.stderr)
            runs[turn][number] = turns[turn]()
    return runs


def table(title: str, runs: dict[str, dict[int, Run]], setup: str) -> list[str]:
    """The rates of one model, and ours against each other one, round by round."""
    lines = [
        f"| {title} | rows/s, median (min–max) | wall s | peak MB | ours ÷ this | goal | |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    rates = {name: {number: run.rows_per_s for number, run in of.items()} for name, of in runs.items()}
    for name in sorted(rates, key=lambda name: name != OURS):
        of = list(rates[name].values())
        wall, peak = (f"{median(getattr(r, key) for r in runs[name].values()):,.1f}" for key in ("wall_s", "peak_mb"))
        cells = [f"{median(of):,.0f} ({min(of):,.0f}–{max(of):,.0f})", wall, peak]
        if name == OURS:
            most = max(run.peak_mb for run in runs[name].values())
            cells += ["", f"≤ {MOST_MB} MB", "reached" if most <= MOST_MB else "**missed**"]
        else:
            ratio = summarise(ratios(rates[OURS], rates[name]))
            cells.append(f"{ratio.middle:.2f} ({ratio.low:.2f}–{ratio.high:.2f})")
            goal, reached = GOALS[name], ratio.middle >= GOALS[name]
            cells += [f"≥ {goal:g}", "reached" if reached else "**missed**"]
        label = f"{name} ({setup})" if name == CEILING else name
        lines.append(f"| {label} | {' | '.join(cells)} |".replace("nan", "–"))
    return [*lines, ""]


def rows_section(name: str, rows: int, rounds: int, folder: Path, without: str) -> list[str]:
    model: Model = getattr(models, name)()
    source = rows_file(model, rows, folder)
    best, _ = search(model, 1.0, BATCHES[name])
    ceiling = Ceiling(model, best)
    try:
        turns = turns_of(model, source, folder, ceiling)
        turns.pop(without, None)
        runs = play(name, turns, rounds)
    finally:
        ceiling.close()
    lines = table(f"{name}, {rows:,} rows", runs, str(best))
    if name == "digits":  # the rows that cost least have the largest share
        shares = [checkpoints(model, source, folder) for _ in range(rounds)]
        clock, processor_s, parts = (median(column) for column in zip(*shares, strict=True))
        said = "reached" if processor_s <= MOST_SHARE else "**missed**"
        lines += [
            f"Checkpoints of {name} ({parts:.0f} parts): syncing, renaming and recording took {processor_s:.2%} of the"
            f" job's time in processor seconds (goal ≤ {MOST_SHARE:.0%}: {said}), and {clock:.2%} by the clock, in"
            " threads beside the scoring.",
            "",
        ]
    source.unlink()
    return lines


def prompts_section(rows: int, rounds: int, folder: Path) -> list[str]:
    source = prompts_file(rows, folder)
    turns = {OURS: lambda: generating_job(source, folder), ENGINE: lambda: engine(source)}
    runs = play("smollm2", turns, rounds)
    said = [{run.tokens for run in of.values()} for of in runs.values()]
    tokens = " and ".join(f"{median(of):,.0f}" for of in said)
    return [*table(f"smollm2, {rows:,} prompts", runs, ""), f"They said {tokens} tokens.", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds of a quarter of the rows")
    parser.add_argument("--only", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each model (5; 2 with --quick)")
    parser.add_argument("--without", default="", help=f"leave one out, such as '{RAY}'")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of RESULTS.md")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.quick else 5)
    began = datetime.now(UTC)
    lines = [
        "## Batch jobs",
        "",
        f"`{' '.join(['python -m benchmarks.batch', *sys.argv[1:]])}` on {began:%Y-%m-%d %H:%M} UTC, {rounds} rounds;"
        f" {processor()}, {os.cpu_count()} cores. Parquet to Parquet.",
        "Rates count from the loaded model on; `wall` is the whole command, its start included; `peak` is what its",
        "processes held together (of Ray Data the script's own process and its children).",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only.split(","):
            rows = ROWS[name] // (4 if options.quick else 1)
            try:
                if name == "smollm2":
                    lines += prompts_section(rows, rounds, Path(folder))
                else:
                    lines += rows_section(name, rows, rounds, Path(folder), options.without)
            except Unavailable as error:
                lines += [f"{name} was left out: {error}", ""]
            keep("\n".join(lines), options.out / "RESULTS.md")
    print("\n".join(lines))


def keep(section: str, results: Path) -> None:
    """Write what is known so far, so that a run which is broken off leaves the models that it had done."""
    document = results.read_text() if results.exists() else "# Results\n"
    results.write_text(insert(document, section, BEGIN, END))


if __name__ == "__main__":
    main()
