"""/v1/files and /v1/batches by the unchanged openai client, against the real service with real replicas."""

import asyncio
import errno
import time

import openai
import pytest

from foretell.app import batch_calls, batches
from foretell.app.batch import BatchService
from foretell.app.config import Config
from foretell.batch.replies import write_replies
from foretell.cli.main import command
from foretell.core.errors import Conflict
from tests.batch.calls import CHAT, COMPLETIONS, EMBED, EMBEDDINGS, TEXTS, Served, add_talk, call, calls, jsonl
from tests.batch.conftest import World
from tests.fleet.scripted import launch_scripted, prompt


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("calls"))
    world.add_python("embed", EMBED, TEXTS)
    add_talk(world.store, world.folder / "talk")
    yield world.store
    world.store.close()


@pytest.fixture(scope="module")
def embed(store):
    served = Served(store, "embed")
    yield served
    served.close()


@pytest.fixture(scope="module")
def talk(store):
    served = Served(store, "talk", launch=launch_scripted)
    yield served
    served.close()


def vectors(lines: list[dict]) -> dict[str, list[float]]:
    return {line["custom_id"]: line["response"]["body"]["data"][0]["embedding"] for line in lines}


def test_a_file_goes_up_and_comes_back(embed):
    content = b'{"a": 1}\n' * 50_000
    file = embed.upload(content, name="täst.jsonl")
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(content), "täst.jsonl", "batch", "processed")
    assert embed.client.files.retrieve(file.id) == file
    assert embed.client.files.content(file.id).read() == content
    assert file.id in [each.id for each in embed.client.files.list(purpose="batch")]
    assert embed.client.files.delete(file.id).deleted
    for gone in (embed.client.files.retrieve, embed.client.files.content, embed.client.files.delete):
        with pytest.raises(openai.NotFoundError, match="deleted"):
            gone(file.id)
    folder = embed.service.catalog._store.files.folder
    assert not (folder / file.id).exists()


def test_a_list_of_files_comes_page_by_page(embed):
    names = [embed.upload(b"{}", "user_data").id for _ in range(5)]
    first = embed.client.files.list(purpose="user_data", limit=2)
    assert first.has_more
    assert len(first.data) == 2
    assert [each.id for each in embed.client.files.list(purpose="user_data", limit=2)] == names[::-1]
    assert [each.id for each in embed.client.files.list(purpose="user_data", order="asc")] == names


def test_every_call_is_answered_as_online(embed):
    texts = ["a", "bb", "ccc"] * 20
    batch = embed.create(calls(texts), metadata={"night": "1"})
    assert batch.id.startswith("batch_")
    assert batch.status in ("validating", "in_progress")
    batch = embed.until(batch)
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": 60, "completed": 60, "failed": 0}
    assert (batch.endpoint, batch.completion_window, batch.metadata) == (EMBEDDINGS, "24h", {"night": "1"})
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at <= batch.expires_at
    assert batch.error_file_id is None
    lines = embed.lines(batch.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"c{number}" for number in range(60)]
    assert vectors(lines) == {f"c{number}": [len(text), 1.0] for number, text in enumerate(texts)}
    online = embed.client.embeddings.create(model="embed", input="bb", encoding_format="float")
    assert lines[1]["response"]["body"] == online.to_dict()
    assert lines[1]["error"] is None
    assert lines[1]["response"]["status_code"] == 200
    assert len({line["id"] for line in lines}) == 60
    output = embed.client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_answers.jsonl")


def test_texts_of_a_language_model_are_answered_as_online(talk):
    asked = [
        {
            "custom_id": f"t{n}",
            "method": "POST",
            "url": COMPLETIONS,
            "body": {"model": "talk", "prompt": prompt(tokens=n)},
        }
        for n in range(1, 9)
    ]
    batch = talk.run(asked, COMPLETIONS)
    online = talk.client.completions.create(model="talk", prompt=prompt(tokens=3))
    lines = {line["custom_id"]: line["response"]["body"] for line in talk.lines(batch.output_file_id)}
    assert len(lines) == 8
    assert lines["t3"]["choices"][0]["text"] == online.choices[0].text == " 0 1 2"
    assert lines["t3"]["usage"] == online.usage.to_dict(exclude_none=True)


def test_chats_are_answered_as_online(talk):
    hello = [{"role": "user", "content": "hello"}]
    asked = [
        call("one", CHAT, model="talk", messages=hello, max_tokens=2),
        call("two", CHAT, model="talk", messages=[]),
    ]
    batch = talk.run(asked, CHAT)
    (line,) = talk.lines(batch.output_file_id)
    assert line["response"]["body"]["choices"][0]["message"]["content"] == " 0 1"
    (error,) = talk.lines(batch.error_file_id)
    assert error["custom_id"] == "two"
    assert error["response"]["body"]["error"]["param"] == "messages"


def test_a_call_that_fails_stops_no_other(embed):
    asked = [
        call("good", input="a"),
        call("raises", input="boom"),
        call("wrong", input=[]),
        call("stranger", input="a", dimensions=900),
        call("good too", input="bb"),
    ]
    batch = embed.run(asked)
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": 5, "completed": 2, "failed": 3}
    assert list(vectors(embed.lines(batch.output_file_id))) == ["good", "good too"]
    errors = {line["custom_id"]: line["response"] for line in embed.lines(batch.error_file_id)}
    assert {name: told["status_code"] for name, told in errors.items()} == {
        "raises": 500,
        "wrong": 400,
        "stranger": 400,
    }
    assert "boom" in errors["raises"]["body"]["error"]["message"]
    assert errors["stranger"]["body"]["error"]["param"] == "dimensions"


def test_a_stream_is_refused_and_a_replica_that_dies_is_not_the_end(talk, tmp_path):
    once = str(tmp_path / "once")
    asked = [
        call("stream", COMPLETIONS, model="talk", prompt=prompt(), stream=True),
        call("dies", COMPLETIONS, model="talk", prompt=prompt(tokens=2, die=1, once=once)),
    ]
    batch = talk.run(asked, COMPLETIONS)
    (error,) = talk.lines(batch.error_file_id)
    assert error["custom_id"] == "stream"
    assert error["response"]["body"]["error"]["param"] == "stream"
    (line,) = talk.lines(batch.output_file_id)
    assert line["response"]["body"]["choices"][0]["text"] == " 0 1"


def test_a_batch_is_cancelled_and_keeps_what_was_answered(embed):
    batch = embed.create(calls(["slow"] * 400))
    embed.until(batch, "in_progress", done=1)
    batch = embed.client.batches.cancel(batch.id)
    assert batch.status in ("cancelling", "cancelled")
    assert batch.cancelling_at
    batch = embed.until(batch)
    assert (batch.status, batch.request_counts.total) == ("cancelled", 400)
    assert batch.cancelled_at
    done, errors = embed.lines(batch.output_file_id), embed.lines(batch.error_file_id)
    assert 0 < len(done) == batch.request_counts.completed < 400
    assert sorted(line["custom_id"] for line in done + errors) == sorted(f"c{number}" for number in range(400))
    assert {(line["response"], line["error"]["code"]) for line in errors} == {(None, "batch_cancelled")}
    with pytest.raises(openai.ConflictError, match="cancelled"):
        embed.client.batches.cancel(batch.id)


def test_a_batch_expires_and_says_which_calls_were_not_made(embed):
    batch = embed.run(calls(["slow"] * 400), EMBEDDINGS, "1s")
    assert batch.status == "expired"
    assert batch.expired_at
    done, errors = embed.lines(batch.output_file_id), embed.lines(batch.error_file_id)
    assert 0 < len(done) < 400
    assert len(done) + len(errors) == 400
    assert errors[0]["error"]["code"] == "batch_expired"
    with pytest.raises(openai.ConflictError, match="is expired; there is nothing to cancel"):
        embed.client.batches.cancel(batch.id)


def test_of_two_servers_one_gathers_the_answers_of_a_cancelled_batch(embed, store, monkeypatch):
    gathered = []

    def write(*arguments):
        gathered.append(arguments)
        time.sleep(0.5)
        return write_replies(*arguments)

    monkeypatch.setattr(batches, "LOOK_S", 0.05)
    monkeypatch.setattr(batch_calls, "write_replies", write)
    other = Served(store, "embed")
    try:
        batch = embed.create(calls(["slow"] * 200))
        embed.until(batch, "in_progress", done=1)
        other.client.batches.cancel(batch.id)
        batch = embed.until(batch)
        time.sleep(0.5)
    finally:
        other.close()
    assert batch.status == "cancelled"
    done, errors = embed.lines(batch.output_file_id), embed.lines(batch.error_file_id)
    assert len(done) + len(errors) == 200
    assert len(gathered) == 1


def test_a_file_may_begin_with_an_empty_line(embed):
    batch = embed.run(b"\n" + jsonl(calls(["a"])))
    assert batch.status == "completed"


def test_a_full_disk_makes_a_batch_wait_and_not_fail(embed, monkeypatch):
    attempts = []

    def full(where):
        def write(*arguments):
            if len(attempts) < 2:
                attempts.append(where)
                raise OSError(errno.ENOSPC, "no space left on device")
            return real[where](*arguments)

        return write

    real = {"calls": batch_calls.write_calls, "replies": batch_calls.write_replies}
    monkeypatch.setattr(batches, "LOOK_S", 0.01)
    monkeypatch.setattr(batch_calls, "write_calls", full("calls"))
    assert embed.run(calls(["a", "boom"])).request_counts.completed == 1
    attempts.clear()
    monkeypatch.setattr(batch_calls, "write_replies", full("replies"))
    monkeypatch.setattr(batch_calls, "write_calls", real["calls"])
    batch = embed.run(calls(["a", "boom"]))
    assert batch.status == "completed"
    assert len(embed.lines(batch.output_file_id)) == len(embed.lines(batch.error_file_id)) == 1
    assert attempts == ["replies"] * 2


def test_a_kill_between_its_files_and_its_last_state_makes_them_again(embed, store, monkeypatch):
    real, killed = store.jobs.move, []

    def move(job, owner, state, *more):
        if state == "completed" and not killed:
            killed.append(job)
            raise OSError("as if the process had ended here")
        real(job, owner, state, *more)

    monkeypatch.setattr(store.jobs, "move", move)
    batch = embed.run(calls(["a", "bb"]))
    assert killed
    assert vectors(embed.lines(batch.output_file_id)) == {"c0": [1.0, 1.0], "c1": [2.0, 1.0]}
    assert len([each for each in store.files.all() if each.filename.startswith(batch.id)]) == 1


def test_batches_are_listed_page_by_page_newest_first(embed):
    made = [embed.run(calls(["a"])).id for _ in range(3)]
    first = embed.client.batches.list(limit=2)
    assert [each.id for each in first.data] == made[:0:-1]
    assert first.has_more
    following = embed.client.batches.list(limit=1, after=made[1])
    assert [each.id for each in following.data] == [made[0]]
    with pytest.raises(openai.BadRequestError, match="after"):
        embed.client.batches.list(after="batch_0")
    with pytest.raises(openai.BadRequestError, match="limit"):
        embed.client.batches.list(limit=0)


def test_a_batch_is_a_job_that_only_a_server_goes_on_with(embed, store, monkeypatch, capsys):
    batch = embed.create(calls(["slow"] * 400))
    embed.until(batch, "in_progress", done=1)
    job = store.jobs.get(batch.id.removeprefix("batch_"))
    monkeypatch.setenv("FORETELL_HOME", str(store.files.folder.parent))
    with pytest.raises(SystemExit):
        command().main(["jobs", "resume", job.id], prog_name="foretell")
    assert "foretell serve" in capsys.readouterr().err
    with pytest.raises(Conflict, match="foretell serve"):
        asyncio.run(BatchService(Config(), store).run(job, None))
    with pytest.raises(SystemExit):
        command().main(["jobs", "cancel", job.id], prog_name="foretell")
    assert embed.until(batch).status == "cancelled"
    with pytest.raises(SystemExit):
        command().main(["jobs", "show", job.id], prog_name="foretell")
    assert "embed" in capsys.readouterr().out


# -- what is refused


FAULTS = {
    "no JSON": (b'{"custom_id": "a"\n', "invalid_json_line", 1, None),
    "no UTF-8": (b"\xff\n", "invalid_json_line", 1, None),
    "no custom_id": (b'{"method": "POST", "url": "/v1/embeddings", "body": {"model": "embed"}}\n', "invalid_request", 1,
                     "custom_id"),
    "no model": ([{"custom_id": "a", "method": "POST", "url": EMBEDDINGS, "body": {}}], "invalid_request", 1, "model"),
    "empty": (b"\n\n", "empty_file", None, None),
    "twice": ([call("a", input="a"), call("b", input="b"), call("a", input="c")], "duplicate_custom_id", 3,
              "custom_id"),
    "other endpoint": ([call("a", input="a"), call("b", CHAT)], "invalid_url", 2, "url"),
    "other method": ([call("a", method="GET", input="a")], "invalid_method", 1, "method"),
    "unknown model": ([call("a", model="embad", input="a")], "model_not_found", 1, "body.model"),
    "mixed models": ([call("a", input="a"), call("b", model="other", input="b")], "mismatched_model", 2, "body.model"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_run_fails_with_the_line_and_the_reason(embed, fault):
    content, code, line, param = FAULTS[fault]
    batch = embed.run(content)
    assert batch.status == "failed"
    assert batch.failed_at
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    (error,) = batch.errors.data
    assert (error.code, error.line, error.param) == (code, line, param)
    assert error.message


def test_every_bad_line_is_named(embed):
    batch = embed.run([call("a", input="a"), call("a", input="a"), call("", input="a"), call("d", "/v1/x", input="a")])
    assert [(each.line, each.code) for each in batch.errors.data] == [
        (2, "duplicate_custom_id"), (3, "invalid_custom_id"), (4, "invalid_url"),
    ]  # fmt: skip


def test_what_cannot_be_begun_is_refused_at_once(embed):
    create = embed.client.batches.create
    file = embed.upload(calls(["a"]))
    good = {"input_file_id": file.id, "endpoint": EMBEDDINGS, "completion_window": "24h"}
    with pytest.raises(openai.BadRequestError, match="Did you mean") as refused:
        create(**{**good, "endpoint": "/v1/embedding"})
    assert refused.value.param == "endpoint"
    with pytest.raises(openai.BadRequestError, match="24h") as refused:
        create(**{**good, "completion_window": "soon"})
    assert refused.value.param == "completion_window"
    with pytest.raises(openai.BadRequestError):
        create(**good, metadata={"a": 1})
    with pytest.raises(openai.NotFoundError, match="file-nothing"):
        create(**{**good, "input_file_id": "file-nothing"})
    other = embed.upload(b"{}", "user_data")
    with pytest.raises(openai.BadRequestError, match="user_data"):
        create(**{**good, "input_file_id": other.id})
    with pytest.raises(openai.BadRequestError, match="purpose"):
        embed.upload(b"{}", "batches")
    with pytest.raises(openai.BadRequestError, match="empty"):
        embed.upload(b"")
    with pytest.raises(openai.NotFoundError):
        embed.client.batches.retrieve("batch_nothing")


def test_forms_that_are_none_are_refused(embed):
    post = embed.client._client.post
    url = f"{embed.client.base_url}files"
    assert "multipart/form-data" in post(url, json={}).json()["error"]["message"]
    plain = {"content-type": "multipart/form-data; boundary=x"}
    assert post(url, content=b"nonsense", headers=plain).status_code == 400
    assert "file" in post(url, content=b"--x--\r\n", headers=plain).json()["error"]["message"]


def test_the_input_may_be_deleted_while_its_batch_runs(embed):
    batch = embed.create(calls(["slow"] * 20))
    embed.client.files.delete(batch.input_file_id)
    assert embed.until(batch).request_counts.completed == 20


def test_what_a_batch_cost_is_in_its_job(embed, store):
    batch = embed.run(calls(["slow"] * 8))
    totals = store.jobs.totals(batch.id.removeprefix("batch_"))
    assert totals.compute_s > 0.05
    assert totals.dollars > 0


def test_nothing_of_a_finished_batch_is_left_but_its_files(embed, store):
    batch = embed.run(calls(["a"]))
    job = store.jobs.get(batch.id.removeprefix("batch_"))
    folder = store.files.folder / "batches" / job.output.split("/")[-2]
    end = time.monotonic() + 10
    while folder.exists() and time.monotonic() < end:  # it goes just after the batch is seen to have ended
        time.sleep(0.01)
    assert not folder.exists()
    assert store.files.path(batch.output_file_id).is_file()
