"""How the works of a step become runs of a graph whose batches take several tokens for one sequence only.

ONNX Runtime's GroupQueryAttention on a CPU takes a batch of sequences with one token each, or one sequence with
many. Pure: no session, no memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

from foretell.llm.executors.base import Work


class Run(NamedTuple):
    """`tokens[i]` go through slot `first` + i, which holds `past[i]` tokens; all have the same number of tokens.

    `wanted` are the positions, counted through all tokens, whose logits are wanted, and `rows` theirs among the
    scores, ascending.
    """

    first: int
    tokens: list[Sequence[int]]
    past: list[int]
    wanted: list[int]
    rows: list[int]


class _Part(NamedTuple):
    """Some tokens of a work. `row` is that of the first token's scores; tokens before `unwanted` have none."""

    slot: int
    past: int
    tokens: Sequence[int]
    unwanted: int
    row: int


def split(works: Sequence[Work]) -> list[Run]:
    """All single tokens of neighbouring slots in one run, then every other work in a run of its own.

    Where a work of many tokens sits between two of a single one, its first token joins their run and closes the gap:
    the run binds one piece of memory, and no row of it is wasted. A slot without work does part them.
    """
    single: dict[int, _Part] = {}
    many: dict[int, _Part] = {}
    row = 0
    for work in works:
        unwanted = len(work.tokens) - work.outputs
        part = _Part(work.slot, work.past, work.tokens, unwanted, row - unwanted)
        (single if len(work.tokens) == 1 else many)[work.slot] = part
        row += work.outputs
    runs = []
    span: list[_Part] = []
    between: list[_Part] = []
    for slot in range(min(single, default=0), max(single, default=-1) + 1):
        if slot in many:
            between.append(many[slot])
        elif slot in single:
            for part in between:
                span.append(_head(part))
                many[part.slot] = _tail(part)
            span.append(single[slot])
            between = []
        elif span:
            runs.append(_run(span))
            span, between = [], []
        else:
            between = []
    if span:
        runs.append(_run(span))
    return runs + [_run([part]) for part in many.values()]


def _head(part: _Part) -> _Part:
    return part._replace(tokens=part.tokens[:1])


def _tail(part: _Part) -> _Part:
    return _Part(part.slot, part.past + 1, part.tokens[1:], part.unwanted - 1, part.row + 1)


def _run(parts: list[_Part]) -> Run:
    length = len(parts[0].tokens)
    wanted = [
        (part.row + token, place * length + token)
        for place, part in enumerate(parts)
        for token in range(max(part.unwanted, 0), length)
    ]
    wanted.sort()
    return Run(
        parts[0].slot,
        [part.tokens for part in parts],
        [part.past for part in parts],
        [position for _, position in wanted],
        [row for row, _ in wanted],
    )
