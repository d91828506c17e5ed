"""The metrics of models that generate: a fold over what generations used, and what replicas hold now."""

from collections.abc import Mapping, Sequence

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from foretell.core.generation import Load
from foretell.core.observation import TokenUse
from foretell.telemetry.histogram import Histogram

LABELS = ("model", "version")
Key = tuple[str, str]


class TokenSeries:
    """The totals of one (model, version)."""

    def __init__(self) -> None:
        self.prompt = 0
        self.cached = 0
        self.completion = 0
        self.drafted = 0
        self.accepted = 0
        self.dollars = 0.0
        self.first_token = Histogram()
        self.inter_token = Histogram()

    def fold(self, uses: Sequence[TokenUse], dollars: float) -> None:
        """Add generations, which cost `dollars` in all."""
        self.prompt += sum(use.prompt_tokens for use in uses)
        self.cached += sum(use.cached_tokens for use in uses)
        self.completion += sum(use.completion_tokens for use in uses)
        self.drafted += sum(use.drafted_tokens for use in uses)
        self.accepted += sum(use.accepted_tokens for use in uses)
        self.dollars += dollars
        self.first_token.add([use.first_token_s for use in uses if use.first_token_s])
        self.inter_token.add(np.frombuffer(b"".join(use.gaps for use in uses), np.float32))

    @property
    def computed(self) -> int:
        """Tokens that were run: of prompts, without the cached ones, and of answers."""
        return self.prompt - self.cached + self.completion


def observed(all_series: Mapping[Key, TokenSeries]) -> list[Metric]:
    """The families that observations make."""
    tokens = CounterMetricFamily(
        "foretell_tokens",
        "Tokens of prompts, those of them that were cached, and of answers.",
        labels=[*LABELS, "kind"],
    )
    first = HistogramMetricFamily(
        "foretell_time_to_first_token_seconds", "From a request's arrival to its first token.", labels=LABELS
    )
    inter = HistogramMetricFamily(
        "foretell_inter_token_seconds", "Between the pieces of an answer; a piece may hold several tokens.",
        labels=LABELS,
    )  # fmt: skip
    drafts = CounterMetricFamily(
        "foretell_draft_tokens", "Tokens guessed ahead, by what became of them.", labels=[*LABELS, "outcome"]
    )
    cost = GaugeMetricFamily(
        "foretell_dollars_per_1000_tokens", "Busy cost of 1,000 computed tokens since the start.", labels=LABELS
    )
    for key, series in all_series.items():
        for kind in ("prompt", "cached", "completion"):
            tokens.add_metric([*key, kind], getattr(series, kind))
        first.add_metric(key, series.first_token.buckets(), series.first_token.sum)
        inter.add_metric(key, series.inter_token.buckets(), series.inter_token.sum)
        drafts.add_metric([*key, "accepted"], series.accepted)
        drafts.add_metric([*key, "rejected"], series.drafted - series.accepted)
        if series.computed:
            cost.add_metric(key, 1000.0 * series.dollars / series.computed)
    return [tokens, first, inter, drafts, cost]


def living(loads: Mapping[Key, Load]) -> list[Metric]:
    """The families that replicas' loads make. Totals start again when a replica does."""
    sequences = GaugeMetricFamily("foretell_sequences", "Sequences in the replicas now.", labels=[*LABELS, "state"])
    memory = GaugeMetricFamily(
        "foretell_kv_cache_tokens", "Tokens that KV memory holds now, and could hold.", labels=[*LABELS, "state"]
    )
    prefixes = GaugeMetricFamily("foretell_prefix_cache_tokens", "Tokens in the prefix cache now.", labels=LABELS)
    lookups = CounterMetricFamily(
        "foretell_prefix_lookup_tokens", "Prompt tokens, by whether the prefix cache had them.",
        labels=[*LABELS, "outcome"],
    )  # fmt: skip
    saved = CounterMetricFamily("foretell_speculation_saved_seconds", "Time that speculation saved.", labels=LABELS)
    for key, load in loads.items():
        sequences.add_metric([*key, "running"], load.running)
        sequences.add_metric([*key, "waiting"], load.waiting)
        memory.add_metric([*key, "used"], load.kv_tokens)
        memory.add_metric([*key, "capacity"], load.kv_capacity)
        prefixes.add_metric(key, load.cached_tokens)
        lookups.add_metric([*key, "hit"], load.hit_tokens)
        lookups.add_metric([*key, "miss"], load.missed_tokens)
        saved.add_metric(key, load.saved_s)
    return [sequences, memory, prefixes, lookups, saved]
