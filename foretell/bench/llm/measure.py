"""From the answers of a load to the numbers of a language model: time to first token, inter-token latency, tokens
per second, goodput, cost per million tokens. Pure functions of arrays; knows no clock, no network and no process.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from foretell.bench.load import LoadPlan, Recording
from foretell.bench.measure import Generator, Percentile, percentile
from foretell.bench.processes import ProcessUse

QUANTILES = (0.5, 0.9, 0.99)
_SLOTS = 60
_CURVE = 120


class Answer(msgspec.Struct, frozen=True):
    """One streamed answer. `times`: when each piece of text came, seconds after the request was sent, in order.

    `tokens` that were generated; `prompt_tokens` and, of these, `cached_tokens` that the server had computed before.
    `counted`: the server said so; otherwise every piece counts as one token, and the prompt is unknown (0).
    """

    times: list[float]
    tokens: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    counted: bool = False


class Targets(msgspec.Struct, frozen=True):
    """What goodput asks of a request, in seconds; None asks nothing. `itl_s` is compared with its mean time per token
    after the first.
    """

    ttft_s: float | None = None
    itl_s: float | None = None


class Latency(msgspec.Struct, frozen=True):
    """Some durations in seconds: mean, largest, and percentiles (with `low` and `high` only where samples are
    independent of each other: gaps between the tokens of one answer are not).
    """

    samples: int
    mean_s: float | None
    max_s: float | None
    points: tuple[Percentile, ...]
    curve: list[tuple[float, float]] = []


class TokenCost(msgspec.Struct, frozen=True):
    """Dollars per million tokens if the machine costs `price_per_hour` and does nothing but this load."""

    price_per_hour: float
    per_million_output: float
    per_million_total: float


class TokenSlot(msgspec.Struct, frozen=True):
    """One stretch of the run's time: when it starts, and output tokens per second in it."""

    at_s: float
    per_s: float


class LlmResult(msgspec.Struct, frozen=True):
    """One load of a language model.

    Rates are over `window_s`: from the first request's due time until no more were sent. The answers that were still
    being written then count in full for latencies, and with their tokens before the end for rates. `ttft` counts
    from when a request was due, `gaps` are the times between pieces of text, `per_token` is each answer's mean time
    per token after the first, `whole` runs to the last piece. Failed requests are in `errors` by kind and nowhere else.
    `prompt_tokens` and `output_tokens` are means per request. `pieces`: tokens in one piece of text, on average.
    """

    name: str
    plan: LoadPlan
    requests: int
    answered: int
    errors: dict[str, int]
    elapsed_s: float
    window_s: float
    requests_per_s: float
    output_per_s: float
    total_per_s: float
    prompt_tokens: float
    output_tokens: float
    cached_share: float
    pieces: float
    counted: bool
    ttft: Latency
    gaps: Latency
    per_token: Latency
    whole: Latency
    targets: Targets
    good_share: float | None
    goodput_per_s: float | None
    cost: TokenCost | None
    timeline: list[TokenSlot]
    generator: Generator
    processes: list[ProcessUse] = []
    notes: list[str] = []


def summarise(
    name: str,
    plan: LoadPlan,
    recording: Recording,
    answers: Sequence[Answer],
    targets: Targets = Targets(),
    price_per_hour: float = 0.0,
    cpu_share: float = 0.0,
) -> LlmResult:
    """Everything the answers say. `answers` are those of the recording's answered requests, in its order.

    price_per_hour: dollars for the whole machine, 0 for no cost. cpu_share: of the load generator.
    """
    ok = recording.ok
    due, late = recording.due[ok], recording.late[ok]
    window = min(plan.duration_s, recording.elapsed_s) if not plan.requests else recording.elapsed_s
    window = max(window, 1e-9)
    ttft = late + np.array([answer.times[0] for answer in answers])
    per_token = np.array([time_per_token(answer) for answer in answers])
    whole = late + np.array([answer.times[-1] for answer in answers])
    output, at = _tokens_over_time(due + late, answers)
    prompts = np.array([float(answer.prompt_tokens) for answer in answers])
    total_in_window = float(output[at <= window].sum() + prompts[due + ttft <= window].sum())
    output_in_window = float(output[at <= window].sum())
    wanted = bool(targets.ttft_s or targets.itl_s)
    good = meets(targets, ttft, per_token)
    generator = Generator(cpu_share, float(np.quantile(recording.late, 0.99)) if len(recording) else 0.0)
    result = LlmResult(
        name=name,
        plan=plan,
        requests=len(recording),
        answered=len(answers),
        errors=recording.errors,
        elapsed_s=recording.elapsed_s,
        window_s=window,
        requests_per_s=int((due + whole <= window).sum()) / window,
        output_per_s=output_in_window / window,
        total_per_s=total_in_window / window,
        prompt_tokens=_mean(prompts),
        output_tokens=_mean(np.array([float(answer.tokens) for answer in answers])),
        cached_share=sum(answer.cached_tokens for answer in answers) / max(float(prompts.sum()), 1.0),
        pieces=sum(answer.tokens for answer in answers) / max(sum(len(answer.times) for answer in answers), 1),
        counted=all(answer.counted for answer in answers),
        ttft=latency(ttft),
        gaps=latency(gaps(answers), independent=False),
        per_token=latency(per_token[~np.isnan(per_token)]),
        whole=latency(whole),
        targets=targets,
        good_share=float(good.sum()) / max(len(recording), 1) if wanted else None,
        goodput_per_s=int((good & (due + whole <= window)).sum()) / window if wanted else None,
        cost=_cost(price_per_hour, window, output_in_window, total_in_window),
        timeline=_timeline(output, at, window),
        generator=generator,
    )
    return msgspec.structs.replace(result, notes=_notes(result))


def time_per_token(answer: Answer) -> float:
    """Mean seconds per token after the first piece; NaN for an answer of one piece."""
    if len(answer.times) < 2:
        return float("nan")
    # The first piece may hold several tokens; without knowing, it is taken to hold its share.
    later = answer.tokens * (len(answer.times) - 1) / len(answer.times)
    return (answer.times[-1] - answer.times[0]) / later


def gaps(answers: Sequence[Answer]) -> NDArray[np.float64]:
    """All times between neighbouring pieces of the same answer."""
    parts = [np.diff(answer.times) for answer in answers if len(answer.times) > 1]
    return np.concatenate(parts) if parts else np.empty(0)


def meets(targets: Targets, ttft: NDArray[np.float64], per_token: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which requests keep both targets. One without a second token has no inter-token latency to miss."""
    good = np.ones(len(ttft), dtype=bool)
    if targets.ttft_s is not None:
        good &= ttft <= targets.ttft_s
    if targets.itl_s is not None:
        good &= np.isnan(per_token) | (per_token <= targets.itl_s)
    return good


def latency(values: NDArray[np.float64], independent: bool = True) -> Latency:
    """Mean, maximum and percentiles of `values` (seconds, any order)."""
    ordered = np.sort(values)
    points = tuple(percentile(ordered, quantile) for quantile in QUANTILES)
    if not independent:
        points = tuple(msgspec.structs.replace(point, low=None, high=None) for point in points)
    if not len(ordered):
        return Latency(0, None, None, points)
    shares = np.linspace(0, 1, _CURVE)
    ranks = np.clip(np.ceil(shares * len(ordered)).astype(int), 1, len(ordered)) - 1
    curve = [(float(share), float(value)) for share, value in zip(shares, ordered[ranks], strict=True)]
    return Latency(len(ordered), float(ordered.mean()), float(ordered[-1]), points, curve)


def _tokens_over_time(
    sent: NDArray[np.float64], answers: Sequence[Answer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tokens of every piece of every answer, and when it came. An answer's tokens are spread evenly over its pieces."""
    if not answers:
        return np.empty(0), np.empty(0)
    counts = [len(answer.times) for answer in answers]
    tokens = np.repeat([answer.tokens / count for answer, count in zip(answers, counts, strict=True)], counts)
    times = np.concatenate([np.asarray(answer.times) for answer in answers])
    return tokens, np.repeat(sent, counts) + times


def _cost(price_per_hour: float, window: float, output: float, total: float) -> TokenCost | None:
    if not price_per_hour or not output:
        return None
    spent = price_per_hour / 3600 * window
    return TokenCost(price_per_hour, spent / output * 1e6, spent / total * 1e6)


def _timeline(tokens: NDArray[np.float64], at: NDArray[np.float64], window: float) -> list[TokenSlot]:
    width = next((w for w in (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0) if window / w <= _SLOTS), window / _SLOTS)
    slots = int(window / width)
    if not slots:
        return []
    inside = at < slots * width
    sums = np.bincount((at[inside] / width).astype(int), tokens[inside], minlength=slots)
    return [TokenSlot(slot * width, float(total) / width) for slot, total in enumerate(sums)]


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _notes(result: LlmResult) -> list[str]:
    """What a reader must know before believing the numbers."""
    notes = []
    if not result.answered:
        return ["Nothing was answered."]
    if not result.counted:
        notes.append("The server sends no usage: each piece of text counts as one token, and prompts are not counted.")
    elif result.pieces > 1.05:
        notes.append(
            f"A piece of text holds {result.pieces:.2f} tokens on average: gaps are between pieces, not tokens."
        )
    unknown = [p for p in result.ttft.points if p.seconds is None]
    if unknown:
        names = ", ".join(f"p{p.quantile * 100:g} needs {p.needed}" for p in unknown)
        notes.append(f"{result.answered} answers are too few: {names}.")
    if failed := result.requests - result.answered:
        notes.append(f"{failed} of {result.requests} requests failed; latencies and rates leave them out.")
    if result.generator.cpu_share > 0.85:
        notes.append(f"The load generator was {result.generator.cpu_share:.0%} busy: the rates are its limit too.")
    if result.plan.rate and result.requests_per_s < 0.9 * result.plan.rate and not failed:
        notes.append(
            f"{result.requests_per_s:.2f} requests/s ended while {result.plan.rate:g} arrived: a longer run would"
            " show whether the queue grows without end."
        )
    return notes
