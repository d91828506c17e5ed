"""What engines are asked, and what numbers come of their answers. Knows no engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.llm_engines import Ask, Run, Served
from benchmarks.llm_texts import Texts

Values = dict[str, float]
DECODE, WHOLE, PROMPT = "decode tokens/s", "tokens/s", "prompt tokens/s"
COLD, WARM, SAVED = "cold ms", "warm ms", "cold ÷ warm"
TTFT, ITL_P50, ITL_P99 = "first token ms", "inter-token p50 ms", "inter-token p99 ms"


@dataclass(frozen=True)
class Workload:
    """`measure` asks through `run` with `streams` at a time; `scale` shortens answers in a quick run."""

    name: str
    streams: int
    measure: Callable[[Run, Texts, int, float], Values]
    engines: tuple[str, ...]


def decode(run: Run, texts: Texts, streams: int, scale: float) -> Values:
    """`streams` prompts of 32 tokens of prose at once."""
    output = max(16, round({1: 128, 8: 96}.get(streams, 64) * scale))
    served = run([Ask(texts.window(32), output) for _ in range(streams)], streams)
    return {DECODE: decoding(served), WHOLE: throughput(served)}


def prompt(run: Run, texts: Texts, streams: int, scale: float) -> Values:
    """A prompt of 512 tokens that nobody has seen, until its first token."""
    times = [_first(run, texts.window(512)) for _ in range(max(1, round(3 * scale)))]
    return {PROMPT: 512 / median(times), TTFT: median(times) * 1e3}


def prefix(run: Run, texts: Texts, streams: int, scale: float) -> Values:
    """500 tokens and a question of 12, then another question about the same 500 tokens."""
    cold, warm = [], []
    for _ in range(max(1, round(3 * scale))):
        common = texts.window(500)
        cold.append(_first(run, common + texts.window(12)))
        warm.append(_first(run, common + texts.window(12)))
    return {COLD: median(cold) * 1e3, WARM: median(warm) * 1e3, SAVED: median(cold) / median(warm)}


def chats(run: Run, texts: Texts, streams: int, scale: float) -> Values:
    """A closed loop of questions: prompts and answers of mixed lengths, streams that begin while others run."""
    random = texts.random
    asks = [
        Ask(texts.window(int(random.integers(20, 300))) + texts.question(), int(random.integers(16, 96)))
        for _ in range(round(4 * streams * scale))
    ]
    served = run(asks, streams)
    gaps = np.concatenate([np.diff(one.times) for one in served if len(one.times) > 1])
    return {
        WHOLE: throughput(served),
        TTFT: median(one.times[0] - one.sent for one in served) * 1e3,
        ITL_P50: float(np.quantile(gaps, 0.5)) * 1e3,
        ITL_P99: float(np.quantile(gaps, 0.99)) * 1e3,
    }


def written(draw: Callable[[Texts], list[int]]) -> Callable[[Run, Texts, int, float], Values]:
    """Answers of 128 tokens to prompts that `draw` makes: one for each stream, or eight one after the other, since
    how much an answer copies differs from text to text."""

    def measure(run: Run, texts: Texts, streams: int, scale: float) -> Values:
        asks = [Ask(draw(texts), 128) for _ in range(max(streams, round(8 * scale)))]
        served = run(asks, streams)
        return {DECODE: alone(served) if streams == 1 else decoding(served)}

    return measure


_SERVERS = ("foretell", "int8", "llamacpp", "openvino")
_OURS = ("inside", "nodrafts")
WORKLOADS = (
    *(Workload("decode", streams, decode, (*_SERVERS, *_OURS)) for streams in (1, 8, 32)),
    Workload("prompt", 1, prompt, _SERVERS),
    Workload("prefix", 1, prefix, _SERVERS),
    Workload("chats", 8, chats, _SERVERS),
    *(
        Workload(name, streams, written(draw), _OURS)
        for name, draw in (("quotes", Texts.quote), ("edits", Texts.edit), ("stories", Texts.story))
        for streams in (1, 8)
    ),
    Workload("questions", 8, written(Texts.question), _OURS),
)


def decoding(served: Sequence[Served]) -> float:
    """Tokens per second while all streams were decoding: from when the last began to when the first ended.

    One stream has no such overlap to wait for: its tokens after the first, by their time.
    """
    begin, end = max(one.times[0] for one in served), min(one.times[-1] for one in served)
    tokens = sum(_share(one) for one in served for time in one.times if begin < time <= end)
    return tokens / (end - begin) if end > begin else throughput(served)


def alone(served: Sequence[Served]) -> float:
    """Tokens per second of answers one after the other: those after the first of each, by their time."""
    tokens = sum(_share(one) * (len(one.times) - 1) for one in served)
    return tokens / sum(one.times[-1] - one.times[0] for one in served)


def throughput(served: Sequence[Served]) -> float:
    """All tokens by the time from the first request to the last token, prompts included."""
    return sum(one.tokens for one in served) / (max(one.times[-1] for one in served) - min(one.sent for one in served))


def _first(run: Run, ids: list[int]) -> float:
    (served,) = run([Ask(ids, 1)], 1)
    return served.times[0] - served.sent


def _share(one: Served) -> float:
    return one.tokens / len(one.times)
