"""The command as a whole: quick to start, every verb documented, the page of them fresh."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import foretell
from foretell.cli.main import VERBS, load_verb

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "onnxruntime", "sqlalchemy", "pyarrow", "grpc", "uvloop", "rich.console", "PIL")


def loaded_by(code: str) -> set[str]:
    """Which of the heavy modules a fresh process has loaded after `code`."""
    script = f"{code}\nimport sys\nprint('\\n'.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split()) & set(HEAVY)


def test_help_loads_no_library_but_the_command_line_s_own():
    code = (
        "from foretell.cli.main import command\n"
        "try: command().main(['--help'], prog_name='foretell')\n"
        "except SystemExit: pass"
    )
    assert loaded_by(code) == set()


def test_a_replica_does_not_load_the_command_line_or_the_store_s_database():
    assert loaded_by("import foretell.fleet.worker") <= {"numpy"}


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "foretell", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"foretell {foretell.__version__}\n"


def test_the_version_is_that_of_the_project():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == foretell.__version__


def test_help_lists_every_verb(cli):
    ran = cli("--help")
    for name in VERBS:
        assert f"\n  {name} " in ran.out


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_with_examples_and_says_what_each_option_is(cli, name):
    ran = cli(name, "--help")
    assert ran.code == 0
    assert f"foretell {name}" in ran.out
    assert "Examples:" in ran.out
    for parameter in load_verb(name).params:
        assert parameter.help, f"{name}: {parameter.name} has no help"


def test_an_unknown_verb_or_option_is_wrong_usage(cli):
    assert cli("lisst").code == 2
    assert "No such command" in cli("lisst").err
    assert cli("list", "--jsonn").code == 2


def test_the_page_of_the_command_line_is_fresh():
    done = subprocess.run(
        [sys.executable, "scripts/cli_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
