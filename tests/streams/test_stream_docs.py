"""The commands of docs/streams.md run as they stand, on files and on a broker; its tables list what the code has."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foretell.streams.ends import SCHEMES
from foretell.streams.formats import FormatName
from foretell.streams.metrics import StreamMetrics
from foretell.streams.progress import Counts
from tests.batch.conftest import linear
from tests.repo.repository import ROOT, markdown_tables
from tests.streams.conftest import lines

PAGE = ROOT / "docs/streams.md"
EVENTS = [
    {"amount": 12.5, "hour": 9, "card": "c1", "at": 1_700_000_000},
    {"amount": 2.5, "hour": 9, "card": "c1", "at": 1_700_000_060},
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def shop(world, monkeypatch):
    """A folder with "fraud" in the store and two payments in a file."""
    world.add("fraud", linear(world.folder / "fraud.onnx"))
    monkeypatch.chdir(world.folder)
    Path("payments.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    return world


def start(world, command: str) -> subprocess.Popen:
    words = shlex.split(command)
    assert words[0] == "foretell"
    environment = {**os.environ, "FORETELL_HOME": str(world.folder / "home")}
    return subprocess.Popen(
        [sys.executable, "-m", *words], env=environment, cwd=world.folder, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> None:
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


def test_files_are_scored_and_an_answer_looks_as_the_page_shows(shop):
    command, _, _ = blocks("bash")
    finish(start(shop, command))
    found = lines(Path("scores.jsonl"))
    (shown,) = map(json.loads, blocks("json"))
    told = re.search(r"A message like `(.+?)`", PAGE.read_text())[1]
    assert {**EVENTS[0], **json.loads(told)} == EVENTS[0]
    assert list(found[0]) == list(shown)
    assert found[0]["outputs"] == shown["outputs"]
    assert found[0]["model"] == shown["model"]


def test_kafka_is_scored(shop, kafka):
    _, command, _ = blocks("bash")
    source, sink = kafka.topic("payments"), kafka.topic("scores")
    kafka.produce(source, EVENTS, key="card")
    command = command.replace("localhost:9092", kafka.address)
    process = start(shop, command.replace("/payments", f"/{source}").replace("/scores", f"/{sink}"))
    found = kafka.read(sink, 2)
    process.send_signal(signal.SIGINT)
    finish(process)
    assert [answer["outputs"]["y"] for answer in found] == [102.5, 92.5]
    assert [answer["key"] for answer in found] == ["c1", "c1"]


def test_a_transform_keeps_state_by_key(shop):
    *_, command = blocks("bash")
    (transform,) = blocks("python")
    Path("transform.py").write_text(transform)
    finish(start(shop, command))
    assert [answer["outputs"]["pair"] for answer in lines(Path("scores.jsonl"))] == [[25.0, 25.0], [5.0, 30.0]]
    assert Path("transform.state").exists()


def test_the_page_lists_every_format():
    told = [cells[0].strip("`") for cells in markdown_tables(PAGE)["Messages"]]
    assert told == list(FormatName.__args__)


def test_the_page_or_the_page_of_ends_names_every_scheme():
    text = "".join(path.read_text() for path in (PAGE, PAGE.with_name("stream-ends.md")) if path.exists())
    assert [name for name in SCHEMES if name != "std" and f"{name}://" not in text] == []


def test_the_page_lists_every_metric_with_its_kind():
    real = {}
    for family in StreamMetrics(lambda: Counts(), "m").collect():
        real[family.name + ("_total" if family.type == "counter" else "")] = family.type
    assert {name.strip("`"): kind for name, kind, _ in markdown_tables(PAGE)["Metrics"]} == real
