"""The order of measurements: interleaved, shuffled, one at a time."""

import sys
import time

import pytest

from benchmarks.load import Sample
from benchmarks.processes import ServerProcess
from benchmarks.rounds import Record, Target, plan, run_rounds
from benchmarks.run import parse


def target(name: str, clients: tuple[int, ...], calls: list[tuple[str, int]] | None = None) -> Target:
    def measure(level: int, seconds: float) -> Sample:
        if calls is not None:
            calls.append((name, level))
        return Sample(100.0, 1.0, 2.0, 0, 100)

    return Target(name, measure, clients)


def test_a_round_holds_every_target_at_every_concurrency_once() -> None:
    targets = [target("a", (1, 8)), target("b", (1, 8, 64))]
    for number in range(4):
        assert sorted((t.name, c) for t, c in plan(targets, number)) == [
            ("a", 1), ("a", 8), ("b", 1), ("b", 8), ("b", 64),
        ]  # fmt: skip


def test_rivals_at_equal_load_are_neighbours_in_time() -> None:
    levels = [c for _, c in plan([target(n, (1, 8, 64)) for n in "abc"], 0)]
    assert levels == sorted(levels)


def test_odd_rounds_run_backwards_and_orders_differ_between_rounds() -> None:
    targets = [target(n, (1, 64)) for n in "abcde"]
    assert plan(targets, 1)[0][1] == 64
    assert len({tuple(t.name for t, _ in plan(targets, n)) for n in range(6)}) > 1


def test_only_the_first_round_has_an_unmeasured_run_before_each_measurement() -> None:
    calls: list[tuple[str, int]] = []
    records = run_rounds("tiny", [target("a", (8,), calls)], rounds=3, seconds=1, say=lambda _: None)
    assert len(calls) == 4
    assert [r.round for r in records] == [0, 1, 2]
    assert records[0].document() | {"cpu_us": 0} == Record("tiny", "a", 8, 0, 100.0, 1.0, 2.0, 0, 0).document()


def test_a_server_whose_threads_spin_is_paused_between_its_turns_and_stopped_at_the_end() -> None:
    server = ServerProcess("test-spinner", [sys.executable, "-c", "while True: pass"], {})
    try:
        assert server.measure_idle(0.3, tries=1) > 0.02
        server.pause()
        time.sleep(0.1)
        before = server.cpu_seconds()
        time.sleep(0.3)
        assert server.cpu_seconds() - before < 0.05
        server.resume()
        assert not server.paused
    finally:
        server.stop()
    assert server.tree() == []


def test_work_left_behind_is_finished_before_the_next_turn() -> None:
    code = "import time; end = time.time() + 1\nwhile time.time() < end: pass\ntime.sleep(60)"
    server = ServerProcess("test-leftover", [sys.executable, "-c", code], {})
    try:
        time.sleep(0.3)
        server.settle(timeout_s=20)
        before = server.cpu_seconds()
        time.sleep(0.2)
        assert server.cpu_seconds() - before < 0.05
    finally:
        server.stop()


def test_a_quiet_server_is_left_alone() -> None:
    server = ServerProcess("test-sleeper", [sys.executable, "-c", "import time; time.sleep(60)"], {})
    try:
        server.pause()
        assert not server.paused
    finally:
        server.stop()


def test_a_server_that_dies_says_why() -> None:
    from benchmarks.environments import Unavailable

    server = ServerProcess("test-dead", [sys.executable, "-c", "raise SystemExit('no such model')"], {})
    with pytest.raises(Unavailable, match="no such model"):
        server.wait_ready(lambda: False, timeout_s=20)


def test_quick_means_two_short_rounds_and_flags_win_over_it() -> None:
    assert (parse(["--quick"]).rounds, parse(["--quick"]).seconds) == (2, 1.0)
    assert parse(["--quick", "--rounds", "7"]).rounds == 7
    assert parse(["--only", "tiny, grpc"]).only == ["tiny", "grpc"]


def test_an_unknown_workload_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--only", "tinny"])
    assert "there are tiny, embedder" in capsys.readouterr().err
