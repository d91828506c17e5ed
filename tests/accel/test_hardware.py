"""Cores, memory, price: container limits count, and replicas and threads fit the cores together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.accel import hardware
from foretell.core.settings import ReplicaSettings


def test_a_container_s_limits_count(tmp_path):
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    found = hardware.detect(groups=tmp_path)
    assert (found.cores, found.memory_bytes) == (1, 2**30)


@pytest.mark.parametrize("quota", ["max 100000", "50000 100000", "nonsense"])
def test_there_is_always_a_core(tmp_path, quota):
    (tmp_path / "cpu.max").write_text(quota)
    assert hardware.detect(groups=tmp_path).cores >= 1


def test_a_set_price_is_used_and_a_guess_says_that_it_is_one(tmp_path):
    assert hardware.detect(1.5, tmp_path).dollars_per_hour == 1.5
    guessed = hardware.detect(None, tmp_path)
    assert guessed.dollars_per_hour > 0
    assert "a guess" in str(guessed)
    assert "a guess" not in str(hardware.detect(0.0, tmp_path))


@given(st.integers(0, 8), st.integers(0, 8), st.integers(1, 128))
def test_what_is_set_stays_and_the_rest_fits_the_cores(count, threads, cores):
    divided = hardware.divide(ReplicaSettings(count=count, threads=threads), cores)
    assert divided.count == (count or divided.count) >= 1
    assert divided.threads == (threads or divided.threads) >= 1
    if not (count and threads):
        assert divided.count * divided.threads <= max(cores, count, threads)
