"""Cores: a container's quota counts, and nonsense is ignored."""

import pytest

from foretell.accel.hardware import usable_cores


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
