"""Tokens follow the distribution that was asked for, by their own seed, whatever else is in the batch."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from foretell.core.generation import Sampling
from foretell.llm.draws import largest
from foretell.llm.executors.base import Scores
from foretell.llm.sampling import Sampler, sample

VOCAB = 300


def logits_of(seed, spread=2.0, rows=1, vocab=VOCAB, coarse=False):
    drawn = np.random.default_rng(seed).standard_normal((rows, vocab)) * spread
    return (np.round(drawn) if coarse else drawn).astype(np.float32)


def edited(logits, params, prompt=(), generated=(), allowed=None, banned=()):
    """One row's logits with bias, penalties and masks, straight from the definitions."""
    x = logits.astype(np.float64).copy()
    for token, bias in params.logit_bias.items():
        x[token] += bias
    for token in {*prompt, *generated}:
        count = list(generated).count(token)
        if params.repetition_penalty:
            x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
        x[token] -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
    if allowed is not None:
        x[~allowed] = -np.inf
    x[list(banned)] = -np.inf
    return x


def reference(x, params):
    """The distribution over the vocabulary that a token must follow, from edited logits."""
    temperature = 1.0 if params.temperature is None else params.temperature
    p = np.exp((x - x.max()) / temperature)
    p[p < (params.min_p or 0.0) * p.max()] = 0
    order = np.argsort(-p, kind="stable")
    if params.top_k and params.top_k > 0:
        p[order[params.top_k :]] = 0
    p /= p.sum()
    if params.top_p is not None and params.top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= max(params.top_p, 1e-9)]] = 0
    return p / p.sum()


class Allowed:
    """A constraint that allows a fixed set of tokens."""

    finished = False

    def __init__(self, allowed):
        bits = np.zeros(-(-len(allowed) // 32) * 32, np.uint8)
        bits[: len(allowed)] = allowed
        self._mask = np.packbits(bits, bitorder="little").view(np.uint32)
        self.advanced = []

    def mask(self):
        return self._mask

    def advance(self, token):
        self.advanced.append(token)


def drawn(logits, params, count, heads=8, prompt=(), constraint=None):
    """`count` tokens at as many positions of one text, all from the same scores, 100 at a time."""
    scores = Scores(logits, heads)
    samplers = [Sampler(params, 7, prompt, constraint) for _ in range(100)]
    tokens = []
    for start in range(0, count, 100):
        for at, sampler in enumerate(samplers):
            # Only the counter moves: what was said before must not change the scores here.
            sampler.count = start + at
        tokens += [one.token for one in sample(scores, [(0, sampler) for sampler in samplers])]
    return np.array(tokens)


def assert_follows(tokens, expected):
    observed = np.bincount(tokens, minlength=len(expected))
    assert not observed[expected == 0].any(), "a token that has no probability was drawn"
    order = np.argsort(-expected)
    # Cells of at least 5 expected counts; the rare ones together are one cell.
    large = order[expected[order] * len(tokens) >= 5]
    rest = np.setdiff1d(order, large)
    want = np.append(expected[large], expected[rest].sum()) * len(tokens)
    got = np.append(observed[large], observed[rest].sum())
    keep = want > 0
    if keep.sum() > 1:
        assert stats.chisquare(got[keep], want[keep] * got.sum() / want[keep].sum()).pvalue > 1e-4


CASES = {
    "plain": Sampling(temperature=1.0),
    "cold": Sampling(temperature=0.3),
    "cool": Sampling(temperature=0.8),
    "hot": Sampling(temperature=1.7),
    "top-k in the head": Sampling(temperature=0.9, top_k=5),
    "top-k beyond the head": Sampling(temperature=1.2, top_k=40),
    "top-p in the head": Sampling(temperature=1.0, top_p=0.3),
    "top-p beyond the head": Sampling(temperature=1.0, top_p=0.95),
    "top-p, cool": Sampling(temperature=0.6, top_p=0.9),
    "top-p of nothing": Sampling(temperature=1.0, top_p=0.0),
    "min-p in the head": Sampling(temperature=1.0, min_p=0.6),
    "min-p beyond the head": Sampling(temperature=1.0, min_p=0.05),
    "all three": Sampling(temperature=1.1, top_k=50, top_p=0.9, min_p=0.02),
    "all three in the head": Sampling(temperature=1.1, top_k=6, top_p=0.8, min_p=0.1),
    "bias": Sampling(temperature=1.0, logit_bias={3: 4.0, 5: -100.0, 299: 5.0}),
    "bias and top-p": Sampling(temperature=0.7, top_p=0.9, logit_bias={3: 4.0}),
    "repetition": Sampling(temperature=1.0, repetition_penalty=1.8),
}
PROMPT = tuple(range(0, 300, 7))


@pytest.mark.parametrize(("heads", "spread"), [(8, 1.0), (8, 3.0), (VOCAB, 2.0)])
@pytest.mark.parametrize("name", CASES)
def test_tokens_follow_the_distribution(name, heads, spread):
    logits = logits_of(1, spread)
    expected = reference(edited(logits[0], CASES[name], PROMPT), CASES[name])
    assert_follows(drawn(logits, CASES[name], 1200, heads, PROMPT), expected)


@pytest.mark.parametrize("share", [0.02, 0.9])
@pytest.mark.parametrize("name", ["plain", "cool", "top-p, cool", "top-k in the head", "bias"])
def test_masked_tokens_never_come_and_the_others_follow_the_distribution(name, share):
    logits = logits_of(2)
    allowed = np.random.default_rng(3).random(VOCAB) < share
    tokens = drawn(logits, CASES[name], 1000, constraint=Allowed(allowed))
    assert_follows(tokens, reference(edited(logits[0], CASES[name], allowed=allowed), CASES[name]))


def test_a_wide_mask_over_a_large_vocabulary_follows_it_too():
    logits = logits_of(4, vocab=6000)
    allowed = np.arange(6000) % 5 > 0
    params = Sampling(temperature=1.0, top_p=0.5)
    tokens = drawn(logits, params, 1500, constraint=Allowed(allowed))
    assert_follows(tokens, reference(edited(logits[0], params, allowed=allowed), params))


params_drawn = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.2, 0.7, 1.0, 1.5]),
    top_p=st.sampled_from([None, 0.1, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([None, -1, 0, 1, 3, 8, 9, 100, 1000]),
    min_p=st.sampled_from([None, 0.01, 0.5]),
    repetition_penalty=st.sampled_from([None, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -0.3]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-5, 5, width=32), max_size=4),
    seed=st.none(),
)


@settings(max_examples=200, deadline=None)
@given(
    params=params_drawn,
    seed=st.integers(-(2**63), 2**64),
    shape=st.tuples(st.integers(0, 50), st.sampled_from([0.5, 2.0, 6.0]), st.booleans()),
    generated=st.lists(st.integers(0, VOCAB - 1), max_size=70),
    masked=st.booleans(),
    banned=st.booleans(),
)
def test_every_token_has_probability_under_the_definitions(params, seed, shape, generated, masked, banned):
    logits = logits_of(shape[0], shape[1], coarse=shape[2])
    allowed = np.random.default_rng(shape[0]).random(VOCAB) < 0.5 if masked else None
    bans = (0, 1, int(logits[0].argmax())) if banned else ()
    sampler = Sampler(params, seed, PROMPT, Allowed(allowed) if masked else None, -1, bans, 1000)
    for token in generated:
        sampler.accept(token)
    token = sample(Scores(logits, 8), [(0, sampler)])[0].token
    x = edited(logits[0], params, PROMPT, generated, allowed, bans)
    if params.temperature == 0:
        assert x[token] >= x.max() - 1e-4
    else:
        # A hair's breadth wider: sums in float32 may round across the edge of a nucleus.
        top_p, min_p = params.top_p and min(params.top_p * 1.0001, 1.0), params.min_p and params.min_p * 0.9999
        assert reference(x, msgspec.structs.replace(params, top_p=top_p, min_p=min_p))[token] > 0


def test_greedy_takes_the_best_and_of_equals_the_smaller_id():
    logits = np.zeros((1, 50), np.float32)
    logits[0, [7, 30]] = 2.0
    for extra in ({}, {"logit_bias": {1: 0.5}}, {"repetition_penalty": 1.1}):
        sampler = Sampler(Sampling(temperature=0, **extra), 0, [49])
        assert sample(Scores(logits, 8), [(0, sampler)])[0].token == 7


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_seed_says_the_same_in_any_batch(data):
    """Each text's tokens are those it has alone, whoever else is in the batch and in whatever order."""
    rows = 6
    wanted = data.draw(st.lists(params_drawn, min_size=rows, max_size=rows))
    steps = [logits_of(100 + step, rows=rows) for step in range(4)]

    def run(order):
        samplers = {row: Sampler(wanted[row], row, PROMPT) for row in order}
        said = {row: [] for row in order}
        for logits in steps:
            scores = Scores(logits, 8)
            for row, one in zip(order, sample(scores, [(row, samplers[row]) for row in order]), strict=True):
                samplers[row].accept(one.token)
                said[row].append(one.token)
        return said

    order = data.draw(st.permutations(range(rows)))
    together = run(order)
    for row in range(rows):
        assert run([row])[row] == together[row]


def test_draws_depend_on_the_seed_and_the_position_alone():
    sampler, other = Sampler(Sampling(), 5, []), Sampler(Sampling(), 6, [])
    in_order = []
    for position in range(200):
        sampler.count = position
        in_order.append(sampler.draw())
    assert len(set(in_order)) == 200
    for position in (150, 3, 64, 63, 199):
        sampler.count = position
        assert sampler.draw() == in_order[position] == sampler.draw()
    assert other.draw() != in_order[0]
    assert stats.kstest(in_order, "uniform").pvalue > 1e-4


def test_neighbouring_seeds_are_independent():
    first = np.array([Sampler(Sampling(), seed, []).draw() for seed in range(1000)])
    assert stats.kstest(first, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.12


def test_penalties_grow_with_what_was_said():
    logits = np.zeros((1, 10), np.float32)
    logits[0, 3] = 1.0
    sampler = Sampler(Sampling(temperature=0, presence_penalty=0.3, frequency_penalty=0.3), 0, [3])
    said = []
    for _ in range(4):
        token = sample(Scores(logits, 4), [(0, sampler)])[0].token
        sampler.accept(token)
        said.append(token)
    # 1.0, then 0.4, then 0.1, then -0.2: below the zeros. The prompt's 3 does not count.
    assert said == [3, 3, 3, 0]


def test_banned_tokens_wait_for_their_time_unless_nothing_else_is_allowed():
    logits = np.zeros((1, 40), np.float32)
    logits[0, 9] = 5.0
    scores = Scores(logits, 8)
    sampler = Sampler(Sampling(temperature=0), 0, [], banned=(9,), banned_until=2)
    said = []
    for _ in range(3):
        said.append(sample(scores, [(0, sampler)])[0].token)
        sampler.accept(said[-1])
    assert said == [0, 0, 9]
    only = np.zeros(40, bool)
    only[9] = True
    forced = Sampler(Sampling(temperature=0), 0, [], Allowed(only), banned=(9,), banned_until=2)
    assert sample(scores, [(0, forced)])[0].token == 9


@pytest.mark.parametrize("count", [0, 1, 8, 20])
def test_logprobs_are_the_models_own_whatever_the_rules(count):
    logits = logits_of(9)
    raw = logits[0].astype(np.float64)
    raw = raw - np.log(np.exp(raw).sum())
    rules = Sampling(temperature=0.5, top_k=3, repetition_penalty=1.5, logit_bias={4: 3.0})
    for params in (rules, Sampling(temperature=0), Sampling(temperature=1.0)):
        one = sample(Scores(logits, 8), [(0, Sampler(params, 1, PROMPT, logprobs=count))])[0]
        assert one.logprob == pytest.approx(raw[one.token], abs=1e-4)
        order = np.argsort(-raw, kind="stable")[:count]
        assert [token for token, _ in one.top] == order.tolist()
        assert [value for _, value in one.top] == pytest.approx(raw[order].tolist(), abs=1e-4)


def test_without_being_asked_no_logprob_is_computed():
    one = sample(Scores(logits_of(9), 8), [(0, Sampler(Sampling(), 1, []))])[0]
    assert (one.logprob, one.top) == (0.0, [])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 1500), st.integers(1, 1600), st.booleans())
def test_the_largest_are_those_of_a_stable_sort(seed, size, count, coarse):
    logits = logits_of(seed, vocab=size, coarse=coarse)[0]
    assert largest(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()


def test_a_constraint_hears_of_every_token():
    constraint = Allowed(np.ones(VOCAB, bool))
    sampler = Sampler(Sampling(temperature=0), 0, [], constraint)
    for token in (4, 5):
        sampler.accept(token)
    assert constraint.advanced == [4, 5]
    assert sampler.count == 2
