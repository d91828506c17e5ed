"""litellm, unchanged and in an environment of its own, against /v1: whole, streamed, tools, its errors for ours."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.repo.repository import ROOT

PYTHON = ROOT / ".peers" / "litellm" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.is_file(), reason="litellm's environment is not made: make clients"),
]


@pytest.fixture(scope="module")
def told(shared) -> dict:
    """What litellm got; see litellm_asks.py."""
    script = Path(__file__).with_name("litellm_asks.py")
    done = subprocess.run([PYTHON, script, shared.url], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["whole", "streamed"])
def test_an_answer_comes(told, way):
    assert told[way] == {"text": "Hello world!", "reason": "stop", "tokens": 4, "calls": []}


@pytest.mark.parametrize("way", ["tools", "tools streamed"])
def test_tools_are_called(told, way):
    assert told[way]["calls"] == [["weather", '{"city": "Paris"}'], ["time", "{}"]]
    assert told[way]["reason"] == "tool_calls"


def test_fields_reach_the_model(told, shared):
    (request,) = [asked for asked in shared.plane.generations if asked.sampling.temperature == 0.5]
    assert (request.stops.max_tokens, request.stops.stop) == (9, ("x",))
    assert json.loads(request.grammar.text) == {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_text_completions_work(told):
    assert told["text"] == "Hello world!"


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("nobody", "NotFoundError"),
        ("refuses", "BadRequestError"),
        ("full", "RateLimitError"),
        ("breaks", "InternalServerError"),
    ],
)
def test_errors_are_litellms_own(told, model, error):
    assert error in told["errors"][model]


def test_a_stream_that_fails_raises(told):
    assert "APIError" in told["broken stream"]
    assert "the replica died" in told["broken stream"][-1]
