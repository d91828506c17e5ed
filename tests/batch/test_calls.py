"""From a file of calls to a table and from the parts of a job to the files of answers; nothing in between is run."""

import asyncio
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.batch import calls, lines
from foretell.batch.calling import CallScorer
from foretell.batch.calls import write_calls
from foretell.batch.ending import Spent
from foretell.batch.lines import BadCalls, model_of
from foretell.batch.replies import Unanswered, write_replies
from foretell.store.job import JobPart

URL = "/v1/embeddings"
WHY = Unanswered("batch_expired", "too late")


def good(model: str) -> None:
    """Every model is served."""


def line(custom_id: str, **body) -> bytes:
    call = {"custom_id": custom_id, "method": "POST", "url": URL, "body": {"model": "m", **body}}
    return json.dumps(call).encode() + b"\n"


@pytest.fixture
def write(tmp_path):
    def write(content: bytes) -> list[dict]:
        source, target = tmp_path / "in.jsonl", tmp_path / "calls.parquet"
        source.write_bytes(content)
        try:
            count = write_calls(source, URL, good, target)
        except BadCalls:
            assert not list(tmp_path.glob("*.tmp")), "nothing is left of a bad file"
            raise
        rows = pa.parquet.read_table(target).to_pylist()
        assert len(rows) == count
        return rows

    return write


@given(
    ids=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=20, unique=True),
    data=st.data(),
)
def test_every_call_is_kept_as_it_came(ids, data):
    texts = [data.draw(st.text(st.characters(codec="utf-8"))) for _ in ids]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jsonl"), Path(folder, "calls.parquet")
        source.write_bytes(b"\n".join(line(each, input=text) for each, text in zip(ids, texts, strict=True)))
        assert write_calls(source, URL, good, target) == len(ids)
        rows = pa.parquet.read_table(target).to_pylist()
    assert [row["custom_id"] for row in rows] == ids
    assert [json.loads(row["body"]) for row in rows] == [{"model": "m", "input": text} for text in texts]


def test_calls_are_written_in_groups(write, monkeypatch):
    monkeypatch.setattr(calls, "_GROUP_BYTES", 1000)
    assert len(write(b"".join(line(str(n), input="x" * 300) for n in range(10)))) == 10


def test_a_file_holds_so_many_calls_and_no_more(write, monkeypatch):
    monkeypatch.setattr(lines, "MOST_CALLS", 3)
    assert len(write(b"".join(line(str(n)) for n in range(3)))) == 3
    with pytest.raises(BadCalls, match="at most 3"):
        write(b"".join(line(str(n)) for n in range(9)))


def test_no_more_faults_are_listed_than_somebody_reads(write):
    with pytest.raises(BadCalls) as error:
        write(b"{}\n" * 1000)
    assert len(error.value.faults) == lines.MOST_FAULTS


@pytest.mark.parametrize(
    ("first", "model"),
    [(line("a"), "m"), (b"\n \n" + line("a"), "m"), (b"{}", ""), (b"\xff", ""), (b"", ""), (b"[" * 9999, "")],
)
def test_the_first_call_tells_the_model(tmp_path, first, model):
    (tmp_path / "in").write_bytes(first)
    assert model_of(tmp_path / "in") == model


class Job:
    """Parts of 3 rows, some of them done, as `JobRun` leaves them; row n fails where n is divisible by 4."""

    def __init__(self, folder: Path, count: int, done: set[int]) -> None:
        self.calls = folder / "calls.parquet"
        self.folder = folder / "parts"
        ids = [f"c{n}" for n in range(count)]
        pa.parquet.write_table(pa.table({"custom_id": ids, "body": ids}), self.calls)
        self.parts = [self._part(part, ids[part * 3 : part * 3 + 3]) for part in sorted(done)]

    def _part(self, part: int, ids: list[str]) -> JobPart:
        failed = [each for each in ids if int(each[1:]) % 4 == 0]
        rest = [each for each in ids if each not in failed]
        (self.folder / "_errors").mkdir(parents=True, exist_ok=True)
        names = []
        if rest:
            names.append(f"part-00000-{part:06d}.parquet")
            told = [f'{{"status_code":200,"body":"{each}"}}' for each in rest]
            pa.parquet.write_table(pa.table({"custom_id": rest, "response": told}), self.folder / names[-1])
        if failed:
            names.append(f"_errors/part-00000-{part:06d}.jsonl")
            lines = [json.dumps({"custom_id": each, "error": '{"status_code":400}'}) + "\n" for each in failed]
            (self.folder / names[-1]).write_text("".join(lines))
        return JobPart(0, part, tuple(names))


@given(count=st.integers(1, 14), done=st.sets(st.integers(0, 4)), again=st.booleans())
def test_every_call_is_in_one_of_the_two_files_however_the_job_ended(count, done, again):
    done = {part for part in done if part * 3 < count}
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), count, done)
        for _ in range(1 + again):
            answers, errors = write_replies(job.calls, job.folder, job.parts, 3, WHY)
        good, bad = ([json.loads(each) for each in file.read_text().splitlines()] for file in (answers, errors))
    answered = {n for n in range(count) if n // 3 in done}
    assert [each["custom_id"] for each in good] == [f"c{n}" for n in sorted(answered) if n % 4]
    assert all(each["response"]["body"] == each["custom_id"] and each["error"] is None for each in good)
    refused = {each["custom_id"] for each in bad if each["response"] is not None}
    assert refused == {f"c{n}" for n in answered if n % 4 == 0}
    left = [each["custom_id"] for each in bad if each["error"] is not None]
    assert left == [f"c{n}" for n in range(count) if n not in answered]


async def test_so_many_calls_are_under_way_and_no_more():
    running, most = 0, 0

    async def ask(endpoint: str, document: bytes, name: str) -> tuple[int, bytes]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return (400, b"{}") if document == b"3" else (200, document)

    scorer = CallScorer(URL, ask, 4, lambda name: Spent(0.5, 0.25))
    table = pa.table({"body": [str(n) for n in range(20)]})
    scored = await scorer.score(table, 1)
    assert most == 4
    assert [json.loads(text)["body"] for text in scored.columns["response"].to_pylist()] == [
        n for n in range(20) if n != 3
    ]
    assert list(scored.failed) == [3]
    assert (scored.compute_s, scored.dollars) == (10.0, 5.0)
    assert (await scorer.sizes(table, 1.0)).part_rows == 4
