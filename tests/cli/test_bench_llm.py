"""`foretell bench llm`: a language model behind a URL is measured; what makes no sense is refused."""

import json

import pytest

from tests.bench.llm_server import FakeLlmServer


@pytest.fixture(scope="module")
def server():
    with FakeLlmServer() as one:
        yield one


def bench(cli, *arguments):
    return cli("bench", "llm", *arguments, "--duration", "0.3", "--output-tokens", "4")


def test_a_url_is_measured_and_a_page_written(cli, server, tmp_path):
    page = tmp_path / "r.html"
    ran = bench(cli, server.url, "--concurrency", "1,2", "--ttft-ms", "60000", "--json", "--html", page)
    assert ran.code == 0, ran.err
    results = json.loads(ran.out)
    assert [r["plan"]["concurrency"] for r in results] == [1, 2]
    assert all(r["answered"] and r["good_share"] == 1 and r["output_tokens"] == 4 for r in results)
    assert "Tokens per second by load" in page.read_text()


def test_the_table_names_the_model_and_its_loads(cli, server):
    ran = bench(cli, server.url, "--rate", "20,40", "--prompt-tokens", "20-60", "--prefix-tokens", "8")
    assert ran.code == 0, ran.err
    for words in ("tiny", "20 requests/s", "40 requests/s", "first token"):
        assert words in ran.out


def test_two_runs_ask_different_prompts_unless_a_seed_says_otherwise(cli, server):
    asked = []
    for arguments in ((), (), ("--seed", "5"), ("--seed", "5")):
        server.bodies.clear()
        assert bench(cli, server.url, "--concurrency", "1", *arguments).code == 0
        asked.append(server.bodies[4]["prompt"])
    assert asked[0] != asked[1]
    assert asked[2] == asked[3]


def test_prompts_of_a_file_and_fields_of_ones_own(cli, server, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    ran = bench(cli, server.url, "--chat", "--concurrency", "1", "--prompts", prompts, "--fields", '{"top_k": 3}')
    assert ran.code == 0, ran.err
    assert server.bodies[-1]["messages"][0]["content"] == "hi"
    assert server.bodies[-1]["top_k"] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--concurrency", "1,many"], 2, "no list of numbers"),
        (["--rate", "fast"], 2, "no list of numbers"),
        (["--concurrency", "0"], 1, "concurrency"),
        (["--prompt-tokens", "many"], 1, "--prompt-tokens"),
        (["--prompt-tokens", "8", "--prefix-tokens", "9"], 1, "prefix"),
        (["--fields", "{]"], 2, "no JSON object"),
        (["--prompts", "/nowhere"], 1, "can't be read"),
        (["--html", "/nowhere/r.html", "--concurrency", "1"], 1, "can't be written"),
    ],
)
def test_what_makes_no_sense_is_refused(cli, server, arguments, code, says):
    ran = bench(cli, server.url, *arguments)
    assert ran.code == code
    assert says in ran.err
