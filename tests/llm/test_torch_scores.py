"""Tokens chosen on the device are those that the host chooses from the same scores, and follow the distribution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="scores on a device are torch's")

from foretell.core.generation import Sampling  # noqa: E402
from foretell.llm.draws import Draw  # noqa: E402
from foretell.llm.executors.base import Scores  # noqa: E402
from foretell.llm.sampling import Sampler, sample  # noqa: E402
from foretell.llm.torch_graphs import CapturedStep, Decoded  # noqa: E402
from foretell.llm.torch_scores import DeviceScores  # noqa: E402
from tests.llm.test_sampling import CASES, PROMPT, VOCAB, assert_follows, edited, logits_of, reference  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(logits, heads=64):
    return DeviceScores(torch.from_numpy(logits).to(DEVICE), heads=heads)


def test_scores_on_a_device_are_those_on_the_host():
    drawn = np.random.default_rng(0).integers(0, 9, (5, 300)).astype(np.float32)  # so that many are equal
    drawn[0] = np.arange(300)
    device, host = on_device(drawn), Scores(drawn)
    assert device.best.tolist() == host.best.tolist()
    assert device.ids.tolist() == host.ids.tolist()
    assert device.values.tolist() == host.values.tolist()
    assert device.row(3).tolist() == host.row(3).tolist()
    assert device.logits.tolist() == drawn.tolist()
    assert device.log_total(2) == pytest.approx(host.log_total(2))
    assert device.heads == host.heads == 64


rules = st.builds(
    Draw,
    row=st.integers(0, 5),
    at=st.floats(0, 1, exclude_max=True),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.5]),
    min_p=st.sampled_from([0.0, 0.01, 0.5]),
    top_k=st.sampled_from([0, 1, 3, 64, 100, 1500, 10**6]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
)


@settings(max_examples=150, deadline=None)
@given(
    draws=st.lists(rules, max_size=8),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.01, 1.0, 4.0]),
    coarse=st.booleans(),
    vocab=st.sampled_from([7, 300, 1024, 1500, 4000]),
)
def test_a_draw_on_the_device_is_that_on_the_host(draws, seed, spread, coarse, vocab):
    """Sums round otherwise: a token may differ where the draw lies within a hair of its edge, and only there."""
    logits = logits_of(seed, spread, 6, vocab, coarse)
    theirs = Scores(logits).drawn(draws)
    mine = on_device(logits).drawn(draws)
    for one, token, other in zip(draws, mine, theirs, strict=True):
        if token != other:
            hair = 1e-5
            edges = [Scores(logits).drawn([moved])[0] for moved in moved_by(one, hair)]
            assert token in edges, (one, token, other)


def moved_by(one, hair):
    for at in (max(one.at - hair, 0.0), min(one.at + hair, 1 - 1e-9)):
        for top_p in (one.top_p - hair, one.top_p, one.top_p + hair) if one.top_p < 1 else (1.0,):
            for min_p in (one.min_p * (1 - hair), one.min_p * (1 + hair)):
                yield one._replace(at=at, top_p=max(min(top_p, 1.0), 0.0), min_p=min_p)


@pytest.mark.parametrize("name", CASES)
def test_tokens_drawn_on_the_device_follow_the_distribution(name):
    logits = logits_of(1, 2.0)
    scores = on_device(logits, 8)
    samplers = [Sampler(CASES[name], 7, PROMPT) for _ in range(1200)]
    for at, sampler in enumerate(samplers):
        sampler.count = at
    tokens = [one.token for one in sample(scores, [(0, sampler) for sampler in samplers])]
    assert_follows(np.array(tokens), reference(edited(logits[0], CASES[name], PROMPT), CASES[name]))


def test_a_nucleus_beyond_the_best_that_are_looked_at_first_is_drawn_from_all():
    logits = np.zeros((2, 4000), np.float32)
    logits[1, :10] = 20.0
    sampler = [Sampler(Sampling(top_p=0.85), seed, []) for seed in range(400)]
    scores = on_device(logits)
    flat = [one.token for one in sample(scores, [(0, each) for each in sampler])]
    sharp = [one.token for one in sample(scores, [(1, each) for each in sampler])]
    assert max(flat) > 3000
    assert max(flat) < 3400  # of equal ones the smaller ids are in the nucleus
    assert set(sharp) == set(range(9))


@pytest.mark.parametrize("top_k", [1024, 1025, 1500, 3999])
def test_a_top_k_beyond_them_too(top_k):
    logits = logits_of(0, 0.01, vocab=4000)
    draws = [Draw(0, at, 0.2, 0.0, top_k, top_p) for at in (0.01, 0.5, 0.99) for top_p in (0.1, 0.9, 1.0)]
    assert on_device(logits).drawn(draws) == Scores(logits).drawn(draws)


def test_rows_nobody_changes_leave_their_logits_where_they_are(monkeypatch):
    scores = on_device(logits_of(0, rows=3))
    monkeypatch.setattr(DeviceScores, "row", lambda *_: pytest.fail("a row of logits went to the host"))
    samplers = [Sampler(CASES[name], 1, []) for name in ("plain", "top-p, cool", "top-k in the head")]
    sampler = Sampler(Sampling(temperature=0.0), 1, [])
    rows = [*enumerate(samplers), (2, sampler)]
    assert all(0 <= one.token < VOCAB for one in sample(scores, rows))
    assert "logits" not in vars(scores)


def test_what_is_drawn_hangs_on_no_other_row():
    logits = logits_of(5, rows=6)
    draws = [Draw(row, 0.1 + row / 8, 1.0, 0.0, 0, top_p) for row, top_p in enumerate((1.0, 0.9, 1.0, 0.5, 0.9, 1.0))]
    together = on_device(logits).drawn(draws)
    assert [on_device(logits).drawn([one])[0] for one in draws] == together
    assert on_device(logits).drawn(draws[::-1]) == together[::-1]


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs are CUDA's")
def test_captured_draws_are_those_one_by_one():
    logits = torch.from_numpy(logits_of(3, 2.0, 8, 6000)).to(DEVICE)
    step = CapturedStep(lambda inputs: Decoded(logits + inputs[0][:, None]), 8, 0, torch.cuda.graph_pool_handle())
    found = step(torch.zeros((2, 8), dtype=torch.int64), [2, 7, 4])
    captured = DeviceScores(*found)
    plain = DeviceScores(logits[[2, 7, 4]])
    for top_p, top_k in ((1.0, 0), (0.9, 0), (0.9999, 0), (1.0, 50), (0.5, 3000)):
        for at in (0.0, 0.3, 0.99):
            draws = [Draw(row, at, 1.0, 0.0, top_k, top_p) for row in (2, 0, 1)]
            assert captured.drawn(draws) == plain.drawn(draws)
    mixed = [Draw(0, 0.3, 1.0, 0.0, 0, 1.0), Draw(2, 0.3, 0.7, 0.1, 0, 0.9), Draw(0, 0.6, 1.0, 0.0, 0, 1.0)]
    assert captured.drawn(mixed) == plain.drawn(mixed)
