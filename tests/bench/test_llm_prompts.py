"""Prompts have the lengths and the common beginnings that were asked for, and the same numbers give the same ones."""

import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.bench.llm.prompts import FilePrompts, Lengths, MadePrompts, Scale, parse_lengths, read_prompts
from foretell.bench.load import LoadPlan, arrivals
from foretell.core.errors import ConfigError

FIXED = Lengths("fixed", 16, 16)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("128", Lengths("fixed", 128, 128)),
        ("64-512", Lengths("uniform", 64, 512)),
        ("~256", Lengths("lognormal", 256, 2048)),
    ],
)
def test_lengths_are_written_as_people_write_them(text, lengths):
    assert parse_lengths(text, "--x") == lengths


@pytest.mark.parametrize("text", ["", "0", "-3", "9-3", "a", "~", "~2-3", "1.5", "1-"])
def test_other_lengths_are_refused_by_the_options_name(text):
    with pytest.raises(ConfigError, match="--x"):
        parse_lengths(text, "--x")


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 2**32))
def test_uniform_lengths_stay_inside_their_bounds(low, more, seed):
    random = np.random.default_rng(seed)
    assert low <= Lengths("uniform", low, low + more).draw(random) <= low + more


def test_log_normal_lengths_have_their_median_and_a_long_tail():
    random, lengths = np.random.default_rng(0), parse_lengths("~200", "")
    drawn = np.array([lengths.draw(random) for _ in range(4000)])
    assert np.median(drawn) == pytest.approx(200, rel=0.05)
    assert drawn.mean() > 1.1 * 200
    assert drawn.min() >= 1 and drawn.max() <= 1600


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32), st.integers(0, 10**6))
def test_a_prompt_depends_on_its_number_and_the_seed_alone(length, seed, number):
    made = MadePrompts(Lengths("fixed", length, length), FIXED, seed=seed)
    again = MadePrompts(Lengths("fixed", length, length), FIXED, seed=seed)
    again(number + 1)
    assert made(number) == again(number)
    assert len(made(number).content.split()) == length
    assert made(number).output == 16


def test_prompts_share_the_prefix_and_nothing_more():
    made = MadePrompts(Lengths("uniform", 60, 90), FIXED, prefix=40)
    first, second = made(0).content.split(), made(1).content.split()
    assert first[:40] == second[:40]
    assert first[40:44] != second[40:44]
    assert 60 <= len(first) <= 90


def test_a_prefix_that_leaves_nothing_of_a_prompt_is_refused():
    with pytest.raises(ConfigError, match="prefix"):
        MadePrompts(Lengths("fixed", 40, 40), FIXED, prefix=40)


@given(st.floats(0, 50), st.floats(0.5, 4), st.integers(60, 4000))
def test_a_scale_gives_the_words_that_count_as_many_tokens(fixed, per_word, tokens):
    words = Scale(fixed, per_word).words(tokens)
    assert fixed + per_word * words == pytest.approx(tokens, abs=per_word)


def test_a_file_holds_plain_lines_texts_and_chats(tmp_path):
    path = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "Hi"}]
    lines = ["Once upon", "", json.dumps({"prompt": "a", "max_tokens": 5}), json.dumps({"messages": messages})]
    path.write_text("\n".join([*lines, json.dumps({"text": "b"})]))
    assert read_prompts(path) == [("Once upon", None), ("a", 5), (messages, None), ("b", None)]
    prompts = FilePrompts(path, FIXED)
    assert [prompts(n).output for n in range(4)] == [16, 5, 16, 16]
    assert prompts(4) == prompts(0)


@pytest.mark.parametrize("line", ["{]", '{"question": "x"}', '{"prompt": 3}', '{"prompt": "x", "max_tokens": "9"}'])
def test_a_line_that_is_no_prompt_is_named(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"fine\n{line}\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_prompts(path)


def test_a_file_that_is_missing_or_empty_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        read_prompts(tmp_path / "none")
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(ConfigError, match="empty"):
        read_prompts(tmp_path / "empty")


def test_arrivals_of_an_open_loop_are_poisson():
    """Gaps pass a Kolmogorov–Smirnov test against the exponential law, counts per second have the law's spread."""
    due = np.array(list(arrivals(LoadPlan(rate=5.0, requests=20_000, seed=7))))
    gaps = np.diff(due, prepend=0.0)
    assert scipy.stats.kstest(gaps, scipy.stats.expon(scale=0.2).cdf).pvalue > 0.01
    counts = np.bincount(due.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03
