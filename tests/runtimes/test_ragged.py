"""Batches of texts of many lengths: the plan is optimal, and running apart changes no answer."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foretell.core.tensor import Signature, TensorSpec
from foretell.runtimes.ragged import Ragged, limit_groups, plan_groups

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=64).map(np.array)
FEEDS = ("input_ids", "attention_mask")


def cost(groups, lengths, run_cost):
    return sum(len(rows) * int(lengths[rows].max()) + run_cost for rows in groups)


def best_cost(lengths, run_cost):
    """By hand: the cheapest way to cut the sorted lengths, one length after another."""
    ordered = sorted(lengths.tolist())
    best = [0]
    for end in range(1, len(ordered) + 1):
        best.append(min(best[cut] + (end - cut) * ordered[end - 1] + run_cost for cut in range(end)))
    return best[-1]


@given(LENGTHS)
def test_every_row_is_in_exactly_one_group(lengths):
    rows = np.concatenate(plan_groups(lengths))
    assert sorted(rows.tolist()) == list(range(len(lengths)))


@given(LENGTHS, st.integers(0, 50))
def test_no_other_way_to_group_costs_less(lengths, run_cost):
    groups = plan_groups(lengths, run_cost, worthwhile=1.0)
    assert cost(groups, lengths, run_cost) == best_cost(lengths, run_cost)


def test_equal_lengths_stay_together():
    assert len(plan_groups(np.full(64, 32))) == 1


@given(LENGTHS, st.integers(1, 2000))
def test_no_run_has_more_tokens_than_the_limit_unless_it_is_one_row(lengths, limit):
    groups = limit_groups(plan_groups(lengths), lengths, limit)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    for rows in groups:
        assert len(rows) >= 1
        assert len(rows) == 1 or len(rows) * int(lengths[rows].max()) <= limit + int(lengths[rows].max())


def test_without_a_limit_groups_stay_as_they_are():
    groups = plan_groups(np.full(64, 256))
    assert limit_groups(groups, np.full(64, 256), 0) is groups


def test_one_long_row_among_short_ones_runs_apart():
    groups = plan_groups(np.array([8] * 31 + [256]))
    assert [len(g) for g in groups] == [31, 1]


class Doubler:
    """Records what it ran on; answers per token (id × 2) and per row (their masked sum)."""

    def __init__(self):
        axes = (-1, -1)
        self.signature = Signature(
            tuple(TensorSpec(n, "INT64", axes) for n in FEEDS),
            (TensorSpec("tokens", "INT64", axes), TensorSpec("sums", "INT64", (-1,))),
        )
        self.shapes = []

    def predict(self, inputs):
        ids, mask = (inputs[n] for n in FEEDS)
        self.shapes.append(ids.shape)
        return {"tokens": ids * 2 * mask, "sums": (ids * mask).sum(axis=1)}

    def close(self):
        pass


def batch(lengths, left=False):
    longest = max(lengths)
    mask = np.array([[1] * n + [0] * (longest - n) for n in lengths])
    mask = mask[:, ::-1].copy() if left else mask
    return {"input_ids": (np.arange(mask.size).reshape(mask.shape) + 1) * mask, "attention_mask": mask}


@given(LENGTHS)
def test_running_apart_gives_the_answers_of_running_together(lengths):
    inputs = batch(lengths.tolist())
    plain, apart = Doubler().predict(inputs), Ragged(Doubler(), "attention_mask", 500).predict(inputs)
    assert list(plain) == list(apart)
    for name in plain:
        np.testing.assert_array_equal(plain[name], apart[name])


def test_short_rows_are_not_padded_to_the_longest_of_the_batch():
    model = Doubler()
    Ragged(model, "attention_mask").predict(batch([5] * 10 + [200, 190]))
    assert sorted(model.shapes) == [(2, 200), (10, 5)]


def test_rows_padded_on_the_left_run_together():
    model = Doubler()
    Ragged(model, "attention_mask").predict(batch([5] * 10 + [200], left=True))
    assert model.shapes == [(11, 200)]
