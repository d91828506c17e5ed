"""The order of the steps that end a micro-batch, for each guarantee. Pure; `processor.py` takes the steps.

Answers are safe before their positions are; state is written last, so it is never ahead of the answers. A processor
that died in between finds state behind the answers, and lets it catch up without answering again (`protocol.Resume`).
"""

from enum import Enum
from typing import Literal

Guarantee = Literal["exactly once", "effectively once", "at least once"]


class Step(Enum):
    """What can be done with the answers of a micro-batch."""

    DEAD_LETTERS = "dead letters"
    """Publish what failed; it must be safe before its position is."""
    PUBLISH = "publish"
    """Publish the answers and wait until they are safe."""
    TRANSACT = "transact"
    """Publish the answers and commit the positions, in one."""
    COMMIT = "commit"
    """Commit the positions at the source."""
    STATE = "state"
    """Write the state with its positions, in one."""


def steps(transactional: bool, stateful: bool = False) -> tuple[Step, ...]:
    """What is done with each micro-batch, in order. A position is never committed before its answer is safe."""
    last = (Step.STATE,) if stateful else ()
    if transactional:
        return (Step.DEAD_LETTERS, Step.TRANSACT, *last)
    return (Step.DEAD_LETTERS, Step.PUBLISH, Step.COMMIT, *last)


def guarantee(transactional: bool, remembers: bool) -> Guarantee:
    """What a pair of ends promises of every answer. `remembers`: the sink can tell, or drops, what it already holds.

    Dead letters are at least once with all of them. State is always exactly once.
    """
    if transactional:
        return "exactly once"
    return "effectively once" if remembers else "at least once"
