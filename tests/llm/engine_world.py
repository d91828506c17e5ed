"""What the engine's tests share: small engines over the fake executor, and what they must say."""

from collections.abc import Sequence as Items

import numpy as np

from foretell.core.generation import Sampling
from foretell.llm.draft_length import DraftLength
from foretell.llm.engine import Emitted, Engine, EngineSettings
from foretell.llm.executors.base import Scores, Shape
from foretell.llm.executors.fake import FakeExecutor
from foretell.llm.prefix_cache import PrefixCache
from foretell.llm.sampling import Sampler, sample
from foretell.llm.sequence import Sequence
from foretell.llm.speculate import Drafter, Offer

VOCAB = 48
EOS = 7


class Watch:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def sequence(prompt: Items[int], number: int = 0, *, temperature: float = 0.0, seed: int = 0, **rest) -> Sequence:
    sampler = Sampler(Sampling(temperature=temperature), seed, list(prompt))
    return Sequence(number, rest.pop("choice", 0), prompt, sampler, **rest)


def expected(executor: FakeExecutor, asked: Sequence, context: int | None = None) -> list[int]:
    """The tokens that the model says after a prompt, computed alone, one by one."""
    tokens, sampler = list(asked.tokens[: asked.prompt_length]), asked.sampler
    context = context or executor.shape.context
    assert sampler.count == 0, "the sampler of a fresh sequence"
    said: list[int] = []
    while len(said) < (asked.max_tokens or 1 << 30) and len(tokens) < context:
        scores = Scores(executor.logits(tokens)[None, :], 8)
        token = sample(scores, [(0, sampler)])[0].token
        sampler.accept(token)
        tokens.append(token)
        said.append(token)
        if token in asked.stop_ids:
            break
    return said


def drive(engine: Engine, steps: int = 100_000) -> list[Emitted]:
    """Step until nothing is left; the books must balance after every step."""
    emitted = []
    for _ in range(steps):
        emitted += engine.step()
        engine.check()
        load = engine.load()
        if not load.running and not load.waiting:
            return emitted
    raise AssertionError("the engine does not come to an end")


def texts(emitted: Items[Emitted]) -> dict[int, list[int]]:
    said: dict[int, list[int]] = {}
    for event in emitted:
        said.setdefault(event.sequence.number, []).extend(sampled.token for sampled in event.tokens)
    return said


def world(
    slots: int = 4,
    context: int = 128,
    settings: EngineSettings = EngineSettings(),
    cache: PrefixCache | None = None,
    drafter: Drafter | None = None,
    lengths: DraftLength | None = None,
    **fake,
) -> tuple[Engine, FakeExecutor, Watch]:
    executor = FakeExecutor(Shape(VOCAB, slots, context, token_bytes=4), **fake)
    watch = Watch()
    return Engine(executor, settings, cache, drafter, lengths, watch), executor, watch


def prompt_of(length: int, salt: int = 0) -> list[int]:
    return np.random.default_rng([length, salt]).integers(8, VOCAB, length).tolist()


class Seer:
    """Guesses what the fake model will say, rightly with probability `sure` at each token."""

    def __init__(self, executor: FakeExecutor, sure: float = 0.7, vocab: int = VOCAB) -> None:
        self._executor = executor
        self._sure = sure
        self._vocab = vocab
        self._random = np.random.default_rng(0)

    def offer(self, sequence: Sequence) -> Offer:
        return Offer(3, 16)

    def propose(self, asked: Items[tuple[Sequence, int]]) -> list[list[int]]:
        return [self._guess(list(sequence.tokens), count) for sequence, count in asked]

    def forget(self, sequence: Sequence) -> None:
        pass

    def _guess(self, tokens: list[int], count: int) -> list[int]:
        length = len(tokens)
        for _ in range(count):
            right = int(self._executor.logits(tokens).argmax())
            tokens.append(right if self._random.random() < self._sure else int(self._random.integers(self._vocab)))
        return tokens[length:]


class AnyLength(DraftLength):
    """Lengths drawn at random: whatever they are, tokens must not change."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = np.random.default_rng(seed)

    def choose(self, decodes, asked):
        return [int(self._random.integers(0, offer.most + 1)) for _, offer in asked]
