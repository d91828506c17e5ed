"""The comparison in one command: `python -m benchmarks.run [--quick] [--only tiny,grpc]`.

Needs Debian's packages wrk and nghttp2-client; installs every peer into `.peers` the first time.
"""

import argparse
import os
import platform
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks import report
from benchmarks.environments import APPS, Unavailable, require_tool
from benchmarks.goals import GOALS
from benchmarks.workloads import WORKLOADS, Run

HERE = Path(__file__).resolve().parent


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> str:
    """foretell's and each peer's pinned version."""
    found = [f"foretell {version('foretell')}", f"onnxruntime {version('onnxruntime')}"]
    for folder in ("fastapi", "litserve", "mlserver", "mosec", "triton"):
        lines = (APPS / folder / "requirements.txt").read_text().split()
        name = {"triton": "nvidia-pytriton"}.get(folder, folder)
        found += [line.replace("==", " ") for line in lines if line.startswith(f"{name}==")]
    return ", ".join(found)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds, under four minutes")
    parser.add_argument("--only", default=",".join(WORKLOADS), help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--rounds", type=int, help="rounds of each workload (6; 2 with --quick)")
    parser.add_argument("--seconds", type=float, help="of each measurement (2; 1 with --quick)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of RESULTS.md, results.json, results.svg")
    options = parser.parse_args(arguments)
    options.only = [name.strip() for name in options.only.split(",") if name.strip()]
    if unknown := [name for name in options.only if name not in WORKLOADS]:
        parser.error(f"unknown workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    options.rounds = options.rounds or (2 if options.quick else 6)
    options.seconds = options.seconds or (1.0 if options.quick else 2.0)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the workloads, write the results, print the goals; 2 if the load generator is missing."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    try:
        require_tool("wrk", "wrk")
    except Unavailable as error:
        print(error)
        return 2
    # Ended from outside, the servers still have to be stopped: `finally` blocks run on SystemExit only.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run, start = Run(options.rounds, options.seconds), time.monotonic()
    for name in options.only:
        try:
            WORKLOADS[name](run)
        except Unavailable as error:
            run.skipped[name] = str(error)
            run.say(f"{name} is skipped: {error}")
    took = f"{(time.monotonic() - start) / 60:.1f} minutes"
    command = " ".join(["python -m benchmarks.run", *arguments])
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    heading = [
        f"`{command}` on {when}, {took}: {options.rounds} rounds of {options.seconds:g} s a measurement.",
        f"Machine: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]},"
        f" Python {platform.python_version()}. Load generator on the same cores.",
        f"Versions: {versions()}.",
    ]
    section = report.markdown(run.records, run.facts, run.settings, run.skipped, heading)
    data = report.as_json(
        run.records, run.facts, run.settings, run.skipped, command=command, date=when, heading=heading
    )
    svg = ""
    if any(r.workload == "tiny" for r in run.records):
        svg = report.picture(run.records, "tiny", 64, "Requests per second, tiny model, JSON, 64 clients")
    options.out.mkdir(parents=True, exist_ok=True)
    report.write(options.out, section, data, svg)
    print(section)
    missed = sum(1 for goal in GOALS if (judged := report.judge(run.records, goal)) and not judged[1])
    print(f"\n{missed} goals missed; written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
