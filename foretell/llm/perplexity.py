"""How well a decoder's graph predicts a text, to tell what a precision costs. Knows nothing of packages.

Perplexity is exp of the mean negative log-likelihood of a token given the ones before it in its window.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foretell.accel.ort import Session, open_session
from foretell.core.errors import InvalidInput
from foretell.core.tensor import DTYPES, Tensors

BUNDLED = Path(__file__).parent / "data" / "evaluation.txt"
"""Excerpts of State of the Union addresses of 1862, 1925, 1962 and 2010 (works of the US government, no copyright)."""

WINDOW, WINDOWS = 512, 8
"""Tokens of a window and how many are taken: about a minute for a model of 135 million weights on two cores."""


def windows(tokens: Sequence[int], context: int, bos: Sequence[int] = ()) -> list[list[int]]:
    """At most `WINDOWS` windows of equal length spread evenly over `tokens`, each behind `bos`.

    Raises `InvalidInput` for a text too short to say anything.
    """
    size = min(WINDOW, context) - len(bos)
    if len(tokens) < 2 * size:
        size = len(tokens) // 2
    if size < 16:
        raise InvalidInput(f"the evaluation text has {len(tokens)} tokens; take one of a thousand words or more")
    count = min(WINDOWS, len(tokens) // size)
    starts = np.linspace(0, len(tokens) - size, count).astype(int).tolist()
    return [[*bos, *tokens[start : start + size]] for start in starts]


def perplexity(
    graph: Path,
    texts: Sequence[Sequence[int]],
    threads: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> float:
    """Of the decoder in the ONNX file `graph` over windows of token ids. `progress` gets shares from 0 to 1."""
    session = open_session(graph, threads, "cpu")
    total, count = 0.0, 0
    try:
        for number, tokens in enumerate(texts):
            scores = _scores(session, tokens)
            total += float(_losses(scores, np.asarray(tokens[1:])).sum())
            count += len(tokens) - 1
            progress((number + 1) / len(texts))
    finally:
        session.close()
    return math.exp(total / count)


def _scores(session: Session, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits [tokens - 1, vocab] of every position but the last."""
    ids = np.asarray([tokens], np.int64)
    inputs: Tensors = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for spec in session.signature.inputs:
        if spec.name == "logits_rows":
            inputs[spec.name] = np.arange(len(tokens) - 1, dtype=np.int64)
        elif spec.name == "position_ids":
            inputs[spec.name] = np.arange(len(tokens), dtype=np.int64)[None]
        elif spec.name.startswith("past_key_values."):
            _, heads, _, width = spec.shape
            inputs[spec.name] = np.zeros((1, heads, 0, width), DTYPES[spec.datatype])
    logits = session.run(inputs, ["logits"])["logits"]
    return logits if logits.ndim == 2 else logits[0, :-1]


def _losses(scores: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log of the softmax at the targets."""
    scores = scores.astype(np.float32, copy=False)
    largest = scores.max(axis=-1)
    total: NDArray[np.float64] = np.log(np.exp(scores - largest[:, None]).sum(axis=-1, dtype=np.float64))
    losses: NDArray[np.float64] = total + largest - scores[np.arange(len(targets)), targets]
    return losses
