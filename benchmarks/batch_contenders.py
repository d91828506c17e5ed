"""Who takes part in the bench of batch jobs: the job itself and the scripts of `batch_scripts`, each a process that is
watched; and the files that they read.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from benchmarks.environments import ROOT
from benchmarks.llm_engines import smollm2_store
from benchmarks.models import Model
from benchmarks.servers import FORETELL, foretell_store
from foretell.tables.arrays import lists, numbers

SCRIPTS = Path(__file__).parent / "batch_scripts"
TOKENS = 32
TEMPLATE = "{text}"
MIB = 2**20


@dataclass(frozen=True)
class Run:
    """What one contender did in one round. `peak_mb`: the most that its processes held together."""

    rows_per_s: float
    wall_s: float = float("nan")
    peak_mb: float = float("nan")
    tokens: int = 0


def rows_file(model: Model, rows: int, folder: Path) -> Path:
    """The model's pool of rows again and again, each input a list column, and an `id`."""
    pool = {name: np.concatenate([row[name] for row in model.rows]) for name in model.rows[0]}
    path = folder / f"{model.name}.parquet"
    writer = None
    for start in range(0, rows, 16_384):
        ids = np.arange(start, min(start + 16_384, rows))
        columns = {"id": pa.array(ids)}
        for name, values in pool.items():
            flat = values.reshape(len(values), -1)[ids % len(values)]
            child = numbers(flat.ravel(), pa.from_numpy_dtype(flat.dtype), flat.dtype)
            columns[name] = lists(np.full(len(ids), flat.shape[1]), child)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, use_dictionary=False)
        writer.write_table(table, row_group_size=max(1, 64 * MIB // max(table.nbytes // len(ids), 1)))
    assert writer is not None
    writer.close()
    return path


def prompts_file(rows: int, folder: Path) -> Path:
    """Short texts, no two alike."""
    path = folder / "prompts.parquet"
    texts = [
        f"Note {number}: the {['cat', 'train', 'letter', 'storm'][number % 4]} came late" for number in range(rows)
    ]
    pq.write_table(pa.table({"id": range(rows), "text": texts}), path)
    return path


def watched(command: list[str], env: dict[str, str]) -> tuple[str, float, float]:
    """Run a command; its output, seconds and the most megabytes that it and its children held."""
    start, peak = time.monotonic(), 0.0
    process = subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.2):
            peak = max(peak, _resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, errors = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed: {errors.strip()[-500:]}")
    return output, time.monotonic() - start, peak / MIB


def _resident(pid: int) -> float:
    try:
        root = psutil.Process(pid)
        return float(sum(process.memory_full_info().pss for process in [root, *root.children(recursive=True)]))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0


def job(model: Model, source: Path, folder: Path) -> Run:
    """`foretell batch` as it is installed, nothing tuned."""
    return _job(model.name, source, folder, foretell_store(model))


def generating_job(source: Path, folder: Path) -> Run:
    """The same over prompts."""
    run = _job("smollm2", source, folder, smollm2_store(), "--prompt", TEMPLATE, "--max-tokens", str(TOKENS))
    said = pyarrow.dataset.dataset(folder / "out", format="parquet").to_table(["completion_tokens"])
    return Run(run.rows_per_s, run.wall_s, run.peak_mb, sum(said.column(0).to_pylist()))


def _job(name: str, source: Path, folder: Path, store: dict[str, str], *more: str) -> Run:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [*FORETELL, "batch", name, str(source), str(out), "--keep", "id", "--json", *more]
    _, wall, peak = watched(command, store)
    report = json.loads((out / "_report.json").read_text())
    if report["errors"]:
        raise RuntimeError(f"{report['errors']} rows failed")
    return Run(report["run_rows"] / report["run_s"], wall, peak)


def script(name: str, model: Model, source: Path, folder: Path, batch: int) -> Run:
    """One of `batch_scripts`; the last word that it prints is its rate."""
    target = folder / f"{name}.out"
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), str(model.path), str(source), str(target), str(batch)]
    output, wall, peak = watched(command, {})
    for left in folder.glob(f"{name}.out*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return Run(float(output.split()[-1]), wall, peak)


def engine(source: Path) -> Run:
    """The language model's engine alone, with the prompts of the job."""
    command = [sys.executable, str(SCRIPTS / "engine.py"), str(source), TEMPLATE, str(TOKENS), "chat"]
    output, wall, peak = watched(command, smollm2_store())
    rate, tokens = output.split()[-2:]
    return Run(float(rate), wall, peak, int(tokens))


def checkpoints(model: Model, source: Path, folder: Path) -> tuple[float, float, int]:
    """The share of a job's time that its checkpoints take, by the clock and of the processor; and its parts."""
    out = folder / "checkpoints"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(SCRIPTS / "checkpoints.py"), model.name, str(source), str(out)]
    clock, processor, parts = watched(command, foretell_store(model))[0].split()[-3:]
    return float(clock), float(processor), int(parts)
