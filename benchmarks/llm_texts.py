"""Prompts of the comparison as token ids: windows of real text, chats, and tasks whose answers repeat their prompts.

Everything is cut from files of this repository, so the same numbers give the same prompts.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.environments import ROOT
from foretell.llm.gguf import GgufModel
from foretell.llm.tokenizer_gguf import build_tokenizer

PROSE = ROOT / "foretell" / "llm" / "data" / "evaluation.txt"
CODE = (
    "core/reference.py",
    "core/clock.py",
    "scheduling/cache.py",
    "bench/pace.py",
    "core/routing.py",
    "llm/choice.py",
)
THINGS = (
    "a lighthouse keeper",
    "a lost dog",
    "the last train home",
    "a clock that runs backwards",
    "two brothers and a boat",
    "a letter without a sender",
    "a garden on the moon",
    "an old violin",
)
QUESTIONS = (
    "What is the difference between weather and climate?",
    "How do I boil an egg so that the yolk stays soft?",
    "Explain what a bank does with my savings.",
    "Why is the sky blue in the day and red in the evening?",
    "Give me three ideas for a rainy afternoon with children.",
    "What should I know before I adopt a cat?",
    "How does a refrigerator work?",
    "Which exercises help against a stiff neck?",
)
_CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class Texts:
    """Draws prompts by `random`; never the same window of text twice in a row of draws."""

    tokenizer: Tokenizer
    random: np.random.Generator
    prose: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.prose = self._ids(PROSE.read_text())

    def window(self, tokens: int) -> list[int]:
        """Consecutive token ids of real prose, from a random place."""
        start = int(self.random.integers(0, len(self.prose) - tokens))
        return self.prose[start : start + tokens]

    def story(self) -> list[int]:
        return self.chat(f"Write a short story about {self._one(THINGS)} and {self._one(THINGS)}.")

    def question(self) -> list[int]:
        return self.chat(f"{self._one(QUESTIONS)} Answer in about {self.random.integers(60, 200)} words.")

    def quote(self) -> list[int]:
        """Asks for a passage word for word, as summaries with quotes do."""
        passage = self.tokenizer.decode(self.window(110)).strip()
        return self.chat(f"Repeat this text word for word:\n\n{passage}")

    def edit(self) -> list[int]:
        """Asks for a piece of code with one word changed."""
        lines = (ROOT / "foretell" / self._one(CODE)).read_text().splitlines()
        start = int(self.random.integers(8, max(9, len(lines) - 16)))
        code = "\n".join(lines[start : start + 14])
        return self.chat(f'Rename "self" to "this" in this code and write all of it:\n\n```python\n{code}\n```')

    def chat(self, message: str) -> list[int]:
        return self._ids(_CHAT.format(message))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _one(self, choices: tuple[str, ...]) -> str:
        return choices[int(self.random.integers(0, len(choices)))]


def tokenizer_of(weights: Path) -> Tokenizer:
    """The tokenizer inside a GGUF file."""
    return build_tokenizer(GgufModel.open(weights).vocabulary())
