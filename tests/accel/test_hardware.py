"""Cores: a container's quota counts, and nonsense is ignored."""

import pytest

from foretell.accel.hardware import usable_cores, usable_memory


def cores(folder, text):
    (folder / "cpu.max").write_text(text)
    return usable_cores(folder)


def test_a_container_s_quota_counts(tmp_path):
    assert cores(tmp_path, "100000 100000\n") == 1


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense"])
def test_without_a_quota_every_core_of_the_affinity_counts(tmp_path, text):
    assert cores(tmp_path, text) == usable_cores(tmp_path / "absent") >= 1


def test_half_a_core_is_still_one(tmp_path):
    assert cores(tmp_path, "50000 100000") == 1


@pytest.mark.parametrize(("limit", "used", "left"), [("1000", "400", 600), ("1000", "2000", 0)])
def test_a_memory_limit_leaves_what_is_not_used_of_it(tmp_path, limit, used, left):
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    assert usable_memory(tmp_path) == left


def test_without_a_memory_limit_what_is_available_counts(tmp_path):
    assert usable_memory(tmp_path) > 0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert usable_memory(tmp_path) > 1000
