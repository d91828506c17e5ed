"""The Makefile names the scripts, and the scripts say what is wrong when they cannot work."""

import os
import re
import shutil
import subprocess

from tests.repo.repository import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


def test_every_script_is_valid_bash_and_every_one_that_make_calls_exists():
    called = re.findall(r"scripts/\w+\.sh", MAKEFILE)
    assert set(called) >= {f"scripts/{n}.sh" for n in ("setup", "demo", "test", "check", "fix", "bench", "soak")}
    for script in [*(ROOT / name for name in called), *(ROOT / "scripts").glob("*.sh"), ROOT / ".ci/run"]:
        subprocess.run(["bash", "-n", script], check=True)


def test_continuous_integration_runs_make_test():
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.MULTILINE)


def test_every_target_has_a_line_of_help():
    targets = set(re.findall(r"^(\w+):", MAKEFILE, re.MULTILINE))
    assert targets == set(re.findall(r"^(\w+): *##", MAKEFILE, re.MULTILINE))


def test_setup_without_a_fitting_python_says_which_it_tried_and_what_to_do(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", tmp_path / "scripts")
    run = subprocess.run(
        ["bash", "scripts/setup.sh"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": "no-such-python"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "no Python 3.11 or newer" in run.stderr
    assert "no-such-python" in run.stderr
