"""One sequence in one step: what runs of it, and how its tokens are chosen from the scores. Knows no slots' books."""

from collections.abc import Sequence as Items

from foretell.core.errors import ForetellError, ModelFailed
from foretell.llm.executors.base import Scores, Work
from foretell.llm.sampling import Sampled, Sampler, sample
from foretell.llm.sequence import Reason, Sequence


class Turn:
    """A sequence runs `count` of its known tokens and then `drafts`, which are of `grade`; `chosen` comes of it."""

    __slots__ = ("chosen", "drafts", "error", "grade", "reason", "sequence", "work")

    def __init__(self, sequence: Sequence, count: int, drafts: list[int], grade: int = 0) -> None:
        past = sequence.computed
        tokens = sequence.tokens[past : past + count] + drafts
        outputs = 0 if past + count < len(sequence.tokens) else 1 + len(drafts)
        self.sequence = sequence
        self.work = Work(sequence.slot, past, tokens, outputs)
        self.drafts = drafts
        self.grade = grade
        self.chosen: list[Sampled] = []
        self.reason: Reason | None = None
        self.error: ForetellError | None = None


def choose(turns: list[Turn], scores: Scores, longest: int) -> None:
    """Sample every turn's first token, then the next of those whose draft was right, and so on.

    Each position is sampled from the model's own scores with the position's own random number, and a draft counts
    while it equals that sample: so drafts never change what comes, sampled or greedy. Sequences of `longest` tokens
    end.
    """
    alive: list[tuple[Turn, int]] = []
    row = 0
    for turn in turns:
        if turn.work.outputs:
            alive.append((turn, row))
            row += turn.work.outputs
    position = 0
    while alive:
        rows = [(row + position, turn.sequence.sampler) for turn, row in alive]
        going = []
        for (turn, row), sampled in zip(alive, _draw(scores, rows), strict=True):
            if isinstance(sampled, Exception):
                turn.error = failed(sampled)
                continue
            turn.chosen.append(sampled)
            turn.reason = turn.sequence.append(sampled.token, longest)
            drafts = turn.drafts
            if turn.reason is None and position < len(drafts) and drafts[position] == sampled.token:
                going.append((turn, row))
        alive = going
        position += 1


def failed(error: Exception) -> ForetellError:
    """What a sequence ends with when the model, or the choice of its token, raised."""
    if isinstance(error, ForetellError):
        return error
    return ModelFailed(f"the model failed at this sequence: {type(error).__name__}: {error}")


def _draw(scores: Scores, rows: Items[tuple[int, Sampler]]) -> Items[Sampled | Exception]:
    """`sample`, or for each row by itself when one of them cannot be sampled."""
    try:
        return sample(scores, rows)
    except Exception as error:
        if len(rows) == 1:
            return [error]
        return [result for row in rows for result in _draw(scores, [row])]
