"""What guesses could gain at best here: `python -m benchmarks.llm_drafts PACKAGE [--texts 24]`.

Texts of the benchmark's prompts are written greedily, then gone through again by a drafter that knows beforehand how
many of its guesses are right and so checks as many as pay: no choice of lengths gains more with these guesses.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.llm_engines import weights
from benchmarks.llm_executor import fastest
from benchmarks.llm_texts import Texts, tokenizer_of
from foretell.core.generation import Sampling
from foretell.llm.draft_length import LENGTHS
from foretell.llm.executors.base import Work
from foretell.llm.executors.onnx import OnnxExecutor, OnnxSettings, open_onnx
from foretell.llm.sampling import Sampler
from foretell.llm.sequence import Sequence
from foretell.llm.speculate import MOST, NGramDrafter

HELD, TOKENS = 200, 128


def costs(executor: OnnxExecutor, seconds: float) -> dict[int, float]:
    """Seconds of a run of one sequence by its rows."""
    executor.run([Work(0, 0, [1] * HELD, 0)])
    took = {}
    for rows in (1, *(length + 1 for length in LENGTHS)):
        work = Work(0, HELD, [1] * rows, rows)
        took[rows] = fastest(partial(lambda work: executor.run([work]).best, work), seconds)
    return took


def together(executor: OnnxExecutor, sequences: int, seconds: float) -> float:
    """Seconds of a step of so many sequences, a token each."""
    for slot in range(sequences):
        executor.run([Work(slot, 0, [slot + 1] * HELD, 0)])
    return fastest(lambda: executor.run([Work(slot, HELD, [1], 1) for slot in range(sequences)]).best, seconds)


def written(executor: OnnxExecutor, prompts: list[list[int]]) -> list[list[int]]:
    """The prompts, each with `TOKENS` tokens of its greedy answer."""
    texts = [list(prompt) for prompt in prompts]
    for slot, text in enumerate(texts):
        text.append(int(executor.run([Work(slot, 0, text, 1)]).best[0]))
    for _ in range(TOKENS - 1):
        best = executor.run([Work(slot, len(text) - 1, [text[-1]], 1) for slot, text in enumerate(texts)]).best
        for text, token in zip(texts, best.tolist(), strict=True):
            text.append(token)
    return texts


def gone_through(prompt: list[int], text: list[int], took: dict[int, float], plain_s: float) -> float:
    """Seconds that the answer takes when each step checks what pays most; a token without a check takes `plain_s`."""
    drafter, sequence = NGramDrafter(), Sequence(0, 0, prompt, Sampler(Sampling(), 0, prompt))
    total, at = 0.0, len(prompt) + 1
    while at < len(text):
        sequence.tokens = text[:at]
        guesses = drafter.propose([(sequence, MOST)])[0] if drafter.offer(sequence) else []
        right = next((n for n, pair in enumerate(zip(guesses, text[at:], strict=False)) if pair[0] != pair[1]), MOST)
        best_s, tokens = plain_s, 1
        for length in LENGTHS if guesses else ():
            gained = 1 + min(length, right, len(text) - at - 1)
            if took[length + 1] / gained < best_s / tokens:
                best_s, tokens = took[length + 1], gained
        total, at = total + best_s, at + tokens
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="a package's folder")
    parser.add_argument("--texts", type=int, default=24, help="of each kind")
    parser.add_argument("--seconds", type=float, default=0.5, help="time of each measurement")
    options = parser.parse_args()
    executor = open_onnx(options.package / "model.onnx", OnnxSettings(max(options.texts, 8), 2048, 2))
    took, eight_s = costs(executor, options.seconds), together(executor, 8, options.seconds) / 8
    print("ms of a run by rows: " + ", ".join(f"{rows}: {1e3 * s:.1f}" for rows, s in took.items()))
    print(f"ms a token of eight sequences together: {1e3 * eight_s:.2f}")
    print(f"ms a token of one sequence whose {MOST} guesses are all right: {1e3 * took[MOST + 1] / (MOST + 1):.2f}")
    texts = Texts(tokenizer_of(weights()), np.random.default_rng(7))
    draws: dict[str, Callable[[], list[int]]] = {"quotes": texts.quote, "edits": texts.edit, "stories": texts.story}
    for name, draw in draws.items():
        prompts = [draw() for _ in range(options.texts)]
        pairs = list(zip(prompts, written(executor, prompts), strict=True))
        for streams, plain_s in ((1, took[1]), (8, eight_s)):
            best = sum(gone_through(prompt, text, took, plain_s) for prompt, text in pairs)
            print(f"{name}, {streams} streams: at best {plain_s * (TOKENS - 1) * len(pairs) / best:.2f}")


if __name__ == "__main__":
    main()
