"""A generator whose model says what a test wrote down: the real text layer and engine over the fake executor."""

from collections.abc import Callable, Sequence
from pathlib import Path

from foretell.core.errors import ForetellError
from foretell.core.generation import Finished, GenerateRequest, Piece, Sampling
from foretell.llm.draft_length import DraftLength
from foretell.llm.engine import Engine, EngineSettings
from foretell.llm.executors.base import Shape
from foretell.llm.executors.fake import FakeExecutor
from foretell.llm.forced import ForcedDrafter
from foretell.llm.generator import LlmGenerator
from foretell.llm.grammar import Grammars
from foretell.llm.intake import Intake, Limits
from foretell.llm.speculate import NoDrafter, Offer
from foretell.llm.template import ChatTemplate
from foretell.llm.text import Tokenizer
from tests.llm import vocabularies

CONTEXT = 256
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)


class Guesser(NoDrafter):
    """Guesses what the model likes best, and every third time something else."""

    def __init__(self, executor: FakeExecutor) -> None:
        self._executor = executor

    def offer(self, sequence):
        return Offer(3, 16)

    def propose(self, asked):
        return [self._guess(list(sequence.tokens), count) for sequence, count in asked]

    def _guess(self, tokens, count):
        start = len(tokens)
        for _ in range(count):
            best = int(self._executor.logits(tokens).argmax())
            tokens.append(best if sum(tokens) % 3 else 70)
        return tokens[start:]


class Always(DraftLength):
    """So many guesses in every step, whatever they cost."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def choose(self, decodes, asked):
        return [min(self._length, offer.most) for _, offer in asked]


class Speaker:
    """`says`: what follows a prompt text, or a function of (prompt ids, said ids) that names the next token.

    After its text the model ends with </s>.
    """

    def __init__(self, folder: Path, says: str | Callable[[Sequence[int]], int] = "", **rest) -> None:
        vocabularies.save(rest.pop("inner", None) or vocabularies.byte_level(), folder)
        self.tokenizer = Tokenizer.load(folder)
        self.eos = self.tokenizer.token_id("</s>")
        self.vocab = self.tokenizer.vocab_size + 8
        self.says = says
        self.prompts: list[list[int]] = []
        shape = Shape(self.vocab, rest.pop("slots", 4), rest.pop("context", CONTEXT), 16)
        self.executor = FakeExecutor(shape, self._follow, peak=rest.pop("peak", 60.0), spend=rest.pop("spend", None))
        guesses = rest.pop("guesses", 0)
        drafter, lengths = (ForcedDrafter(Guesser(self.executor)), Always(guesses)) if guesses else (None, None)
        self.engine = Engine(self.executor, EngineSettings(max_waiting=8), None, drafter, lengths)
        limits = Limits(shape.context, self.vocab, (self.eos,))
        grammars = Grammars(folder / "tokenizer.json", self.vocab, limits.eos)
        template = ChatTemplate(rest.pop("template", TEMPLATE))
        intake = Intake(self.tokenizer, template, grammars, limits, rest.pop("defaults", Sampling(temperature=0.0)))
        self.closed = 0
        self.generator = LlmGenerator(self.engine, intake, self.tokenizer, self._close)
        self.told: dict[int, list] = {}

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, special=False)

    def submit(self, prompt="Hello", number: int = 0, **fields) -> None:
        request = GenerateRequest(prompt, **fields)
        self.generator.submit(number, request)
        self.told[number] = []

    def step(self) -> list:
        said = self.generator.step()
        for number, event in said:
            self.told[number].append(event)
        self.engine.check()
        return said

    def run(self, steps: int = 2000) -> None:
        for _ in range(steps):
            load = self.generator.load()
            if not load.running and not load.waiting:
                return
            self.step()
        raise AssertionError("it never comes to rest")

    def answer(self, prompt="Hello", **fields) -> list:
        """All events of one request."""
        self.submit(prompt, **fields)
        self.run()
        return self.told[0]

    def _follow(self, tokens: Sequence[int]) -> int:
        if callable(self.says):
            return self.says(tokens)
        wanted = [*self.ids(self.says), self.eos]
        # How much was said already: the longest end of the tokens that the text begins with.
        for size in range(min(len(tokens), len(wanted)), -1, -1):
            if list(tokens[len(tokens) - size :]) == wanted[:size]:
                return wanted[size] if size < len(wanted) else self.eos
        raise AssertionError

    def _close(self) -> None:
        self.closed += 1


def text_of(events, choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece) and event.choice == choice)


def tokens_of(events, choice: int = 0) -> list[int]:
    return [t for event in events if isinstance(event, Piece) and event.choice == choice for t in event.tokens]


def ends(events) -> list:
    return [event for event in events if isinstance(event, Finished | ForetellError)]
