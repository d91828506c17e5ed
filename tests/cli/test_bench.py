"""`foretell bench`: a model of the store is served for the measurement; two are compared in one run."""

import json

import pytest


def test_bench_measures_a_model_of_the_store_and_writes_a_page(cli, scale, tmp_path):
    ran = cli("bench", "scale", "--concurrency", "1,2", "--duration", "0.3", "--json", "--html", tmp_path / "r.html")
    assert ran.code == 0, ran.err
    results = json.loads(ran.out)
    assert [r["name"] for r in results] == ["scale@1", "scale@1"]
    assert all(r["answered"] > 0 and not r["errors"] for r in results)
    assert "Latency by percentile" in (tmp_path / "r.html").read_text()


def test_bench_compares_two_targets_in_one_run(cli, scale):
    ran = cli("bench", "--compare", "scale", "scale@1", "--concurrency", "2", "--duration", "0.4", "--json")
    assert ran.code == 0, ran.err
    assert {r["name"] for r in json.loads(ran.out)["ratios"]} >= {"throughput", "p50"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["scale", "scale"], 2, "name one target"),
        (["--compare", "scale"], 2, "two with --compare"),
        (["scale", "--concurrency", "1,many"], 2, "no list of numbers"),
        (["scale", "--duration", "0"], 1, "duration_s"),
        (["scael"], 1, 'Did you mean "scale"'),
    ],
)
def test_bench_refuses_what_makes_no_sense(cli, scale, arguments, code, says):
    ran = cli("bench", *arguments)
    assert ran.code == code
    assert says in ran.err
