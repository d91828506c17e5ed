"""The writer process: everything sent arrives, and what is lost on the way is counted."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from foretell.core.observation import TokenUse
from foretell.telemetry.parquet import read_observations, unpack_tensors
from foretell.telemetry.writer import Targets, WriterProcess
from tests.telemetry.observations import observation

PATIENCE_S = 30.0


def wait_for(condition) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


def test_every_observation_becomes_a_line_and_a_row(tmp_path: Path):
    writer = WriterProcess(Targets(str(tmp_path / "access.log"), str(tmp_path / "o")))
    for start in range(0, 10_000, 250):
        writer.consume([observation(request_id=str(i)) for i in range(start, start + 250)])
    writer.close()
    rows = read_observations(tmp_path / "o")
    assert rows["request_id"].to_pylist() == [str(i) for i in range(10_000)]
    assert len((tmp_path / "access.log").read_text().splitlines()) == 10_000
    assert writer.losses == {"access_log": 0, "parquet": 0}


def test_sampled_tensors_arrive_bit_for_bit(tmp_path: Path):
    inputs = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "text": np.array(["né".encode(), b"\xff\x00"], dtype=object),
        "none": np.zeros((0, 4), dtype=np.int64),
    }
    writer = WriterProcess(Targets(parquet=str(tmp_path)))
    writer.consume([observation(inputs=inputs, outputs=None)])
    writer.close()
    cell = unpack_tensors(read_observations(tmp_path)["inputs"].to_pylist()[0])
    assert cell is not None
    assert list(cell) == list(inputs)
    for name, array in inputs.items():
        assert cell[name].tolist() == array.tolist()
        assert cell[name].shape == array.shape


def test_the_tokens_of_generations_arrive(tmp_path: Path):
    writer = WriterProcess(Targets(str(tmp_path / "access.log"), str(tmp_path / "o")))
    gaps = np.array([0.25, 0.75], np.float32).tobytes()
    writer.consume([observation(tokens=TokenUse(100, 60, 20, 8, 6, 0.2, gaps)), observation()])
    writer.close()
    assert read_observations(tmp_path / "o")["longest_gap_s"].to_pylist() == [0.75, 0.0]
    assert '"first_token_ms":200.0,"inter_token_ms":500.0' in (tmp_path / "access.log").read_text()


def test_no_process_starts_before_the_first_observation():
    writer = WriterProcess(Targets(access_log="-"))
    assert writer.pid == 0
    writer.tick()
    writer.close()
    assert writer.pid == 0


def test_a_killed_writer_costs_what_it_had_not_written_and_is_replaced(tmp_path: Path):
    writer = WriterProcess(Targets(str(tmp_path / "access.log"), str(tmp_path / "o")))
    writer.consume([observation()] * 100)
    log = tmp_path / "access.log"
    wait_for(lambda: log.exists() and log.read_text().count("\n") == 100)
    wait_for(lambda: writer.tick() or (writer._books and writer._books["access_log"].kept == 100))
    first = writer.pid
    os.kill(first, signal.SIGKILL)
    pipe = select.poll()
    pipe.register(writer._process.stdin, select.POLLERR)
    wait_for(lambda: pipe.poll(0))
    with pytest.raises(RuntimeError, match="writer of observations died with status -9"):
        writer.consume([observation()] * 10)
    assert writer.losses == {"access_log": 10, "parquet": 110}, "Parquet rows waited in the process"
    writer.consume([observation()] * 5)  # too soon after the start of the first: not started again at once
    time.sleep(max(0.0, 1.05 - (time.monotonic() - writer._started_at)))
    writer.consume([observation()] * 7)
    assert writer.pid not in (0, first)
    writer.close()
    assert read_observations(tmp_path / "o").num_rows in (7, 12)
    assert sum(writer.losses.values()) + 100 + 2 * read_observations(tmp_path / "o").num_rows == 2 * 122


def test_a_folder_that_cannot_be_written_is_counted_and_the_log_goes_on(tmp_path: Path):
    (tmp_path / "o").write_text("a file in the way")
    writer = WriterProcess(Targets(str(tmp_path / "access.log"), str(tmp_path / "o")))
    writer.consume([observation()] * 3)
    writer.close()
    assert writer.losses == {"access_log": 0, "parquet": 3}
    assert len((tmp_path / "access.log").read_text().splitlines()) == 3


def test_a_killed_gateway_loses_nothing_that_was_sent(tmp_path: Path):
    gateway = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys, time; from foretell.telemetry.writer import *;"
            "from tests.telemetry.observations import observation;"
            "w = WriterProcess(Targets(parquet=sys.argv[1])); w.consume([observation()] * 50);"
            "print('sent', flush=True); time.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert gateway.stdout is not None
    assert gateway.stdout.readline() == b"sent\n"
    gateway.kill()
    gateway.wait()
    gateway.stdout.close()
    wait_for(lambda: read_observations(tmp_path).num_rows == 50)


def test_signals_to_the_whole_group_do_not_stop_the_writing(tmp_path: Path):
    writer = WriterProcess(Targets(access_log=str(tmp_path / "access.log")))
    writer.consume([observation()])
    wait_for(lambda: (tmp_path / "access.log").exists() and (tmp_path / "access.log").read_text())
    os.kill(writer.pid, signal.SIGTERM)
    os.kill(writer.pid, signal.SIGINT)
    writer.consume([observation()])
    writer.close()
    assert len((tmp_path / "access.log").read_text().splitlines()) == 2
    assert writer.dropped == 0
