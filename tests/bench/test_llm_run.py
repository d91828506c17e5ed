"""A language model is measured from its URL alone, whatever subset of OpenAI's API it takes; reports show it."""

import io
import re

import msgspec
import pytest
from rich.console import Console

from foretell.bench.llm.measure import Targets
from foretell.bench.llm.prompts import FilePrompts, Lengths, MadePrompts
from foretell.bench.llm.report import render_html, render_text, rows_of, write_html
from foretell.bench.llm.run import LlmSettings, run_llm
from foretell.bench.load import LoadPlan
from foretell.core.errors import ConfigError
from tests.bench.llm_server import FakeLlmServer

QUICK = LoadPlan(concurrency=3, requests=12, warmup_s=0)
WARM = 3


def fixed(tokens):
    return Lengths("fixed", tokens, tokens)


def measure(server, plans=(QUICK,), prompts=None, **settings):
    def made(scale):
        return prompts or MadePrompts(fixed(40), fixed(6), scale=scale)

    return run_llm("", LlmSettings(**{"url": server.url, **settings}), made, plans, progress=False)


def test_a_server_is_measured_from_its_url_alone():
    with FakeLlmServer() as server:
        (result,) = measure(server, targets=Targets(60.0, 60.0))
    assert (result.name, result.answered, result.errors) == ("tiny", 12, {})
    assert (result.output_tokens, result.prompt_tokens, result.counted) == (6, 40, True)
    assert (result.cached_share, result.pieces, result.good_share) == (0.5, 1.0, 1.0)
    assert 0 < result.ttft.points[0].seconds < result.whole.points[0].seconds
    assert result.gaps.samples == 12 * 5
    assert result.cost.per_million_total < result.cost.per_million_output
    assert "12 answers are too few: p90 needs 35, p99 needs 381." in result.notes


def test_the_first_token_waits_longer_than_the_next_where_the_server_does():
    with FakeLlmServer(first_s=0.06, gap_s=0.002) as server:
        (result,) = measure(server)
    assert result.ttft.mean_s > result.gaps.mean_s


def test_every_request_is_greedy_long_and_new():
    with FakeLlmServer() as server:
        measure(server, [QUICK, QUICK], more={"top_k": 5, "temperature": 0.5})
    asked = server.bodies[-(2 * (12 + WARM)) :]
    assert len({body["prompt"] for body in asked}) == len(asked)
    assert all(body["ignore_eos"] and body["stream"] and body["top_k"] == 5 for body in asked)
    assert {body["temperature"] for body in asked} == {0.5}


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/completions"])
def test_the_url_may_be_the_servers_or_the_endpoints(path):
    with FakeLlmServer() as server:
        (result,) = measure(server, url=server.url + path)
    assert result.answered == 12


def test_chats_are_asked_for_where_the_url_or_the_server_says_so():
    for server, more in ((FakeLlmServer(chat_only=True), {}), (FakeLlmServer(), {"chat": True})):
        with server:
            (result,) = measure(server, **more)
        assert server.bodies[-1]["messages"][0]["role"] == "user"
        # The chat template's own tokens are part of the length that was asked for.
        assert result.prompt_tokens == pytest.approx(40, abs=2)


def test_what_a_plain_server_refuses_is_left_out_and_noted():
    with FakeLlmServer(refuse=["ignore_eos", "stream_options"]) as server:
        (result,) = measure(server)
    assert result.answered == 12
    assert not result.counted
    assert [note.split(":")[0] for note in result.notes[:2]] == [
        "The server does not take ignore_eos",
        "The server does not take stream_options",
    ]


def test_the_newer_name_of_the_longest_answer_is_tried():
    with FakeLlmServer(refuse=["max_tokens"]) as server:
        (result,) = measure(server, chat=True)
    assert (result.answered, result.output_tokens) == (12, 6)
    assert "max_completion_tokens" in server.bodies[-1]


def test_a_server_that_counts_nothing_is_measured_by_pieces_and_says_so():
    with FakeLlmServer(usage=False) as server:
        (result,) = measure(server)
    assert (result.output_tokens, result.prompt_tokens, result.counted) == (6, 0, False)
    assert any("no usage" in note for note in result.notes)


def test_failed_requests_are_counted_by_kind_and_nowhere_else():
    first = 3 + WARM  # one probe, two to count words, the warm-up
    faults = dict(enumerate(["500", "error", "cut", "silence", "junk"], start=first))
    with FakeLlmServer(fail=faults) as server:
        (result,) = measure(server)
    assert result.errors == {
        "HTTP 500": 1,
        "error in the stream": 1,
        "stream cut off": 1,
        "no text": 1,
        "malformed event": 1,
    }
    assert (result.requests, result.answered, result.ttft.samples) == (12, 7, 7)


def test_an_open_loop_and_a_sweep_of_it():
    with FakeLlmServer() as server:
        results = measure(server, [LoadPlan(rate=rate, requests=20, warmup_s=0) for rate in (200.0, 400.0)])
    assert [result.answered for result in results] == [20, 20]


def test_real_prompts_come_from_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one two three\n" + '{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}\n')
    with FakeLlmServer() as server:
        (result,) = measure(server, prompts=FilePrompts(path, fixed(5)), chat=True)
        with pytest.raises(ConfigError, match="--chat"):
            measure(server, prompts=FilePrompts(path, fixed(5)))
    assert result.output_tokens == 4


def test_a_key_is_sent_as_a_bearer_token():
    with FakeLlmServer() as server:
        measure(server, key="secret")
    assert {headers["authorization"] for headers in server.headers} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("server", "settings", "says"),
    [
        (FakeLlmServer(models=("a", "b")), {}, "a, b"),
        (FakeLlmServer(refuse=["model"]), {}, "unknown field model"),
        (FakeLlmServer(fail=dict.fromkeys(range(99), "500")), {}, "broken"),
        (FakeLlmServer(fail=dict.fromkeys(range(3, 99), "500")), {}, "warm-up"),
        (FakeLlmServer(), {"url": "ftp://x"}, "not a URL"),
    ],
)
def test_what_cannot_be_measured_says_why(server, settings, says):
    with server, pytest.raises(ConfigError, match=says):
        measure(server, **settings)


def test_nobody_there_says_so():
    with FakeLlmServer() as server:
        url = server.url
    for model in ("", "tiny"):
        with pytest.raises(ConfigError, match="Is the server running"):
            measure(server, url=url, model=model)


@pytest.fixture(scope="module")
def results():
    with FakeLlmServer() as server:
        plans = [LoadPlan(concurrency=n, requests=40, warmup_s=0) for n in (1, 4)]
        return measure(server, plans, targets=Targets(1.0, 1.0), price_per_hour=1.0)


def test_the_table_has_a_column_a_load_and_says_everything(results):
    out = io.StringIO()
    Console(file=out, width=200).print(render_text(results))
    for words in (
        "1 stream",
        "4 streams",
        "tokens/s",
        "first token",
        "inter-token",
        "goodput",
        "per million",
        "needs 381",
    ):
        assert words in out.getvalue()
    assert dict(rows_of(results[0]))["errors"] == "none"


def test_the_page_draws_the_sweep_without_scripts_or_network(results, tmp_path):
    path = tmp_path / "report.html"
    write_html(results, path)
    page = path.read_text()
    assert page.count("<svg") == 6
    assert page == render_html(results)
    assert not re.search(r"<script|https?://|src=", page)
    assert "NaN" not in page and "nan" not in page
    assert render_html(results[:1]).count("<svg") == 3


def test_a_report_that_cannot_be_written_says_so(results, tmp_path):
    with pytest.raises(ConfigError, match=r"\.html"):
        write_html(results, tmp_path / "report.pdf")
    with pytest.raises(ConfigError, match="can't be written"):
        write_html(results, tmp_path / "none" / "report.html")


def test_results_are_plain_json(results):
    decoded = msgspec.json.decode(msgspec.json.encode(results))
    assert decoded[0]["plan"]["concurrency"] == 1
