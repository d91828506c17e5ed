"""`open_generator`: a package of runtime "llm" becomes a generator. The one place that knows all parts of the room."""

import contextlib
from pathlib import Path

import msgspec

from foretell.core.errors import PackageError
from foretell.core.settings import GenerationSettings, ReplicaSettings
from foretell.llm.engine import Engine, EngineSettings
from foretell.llm.executors.base import Shape
from foretell.llm.forced import ForcedDrafter
from foretell.llm.generator import LlmGenerator
from foretell.llm.grammar import Grammars
from foretell.llm.intake import Intake, Limits
from foretell.llm.opening import open_executor
from foretell.llm.prefix_cache import NoPrefixCache, RadixCache
from foretell.llm.speculate import Drafter, DraftModel, NGramDrafter, NoDrafter
from foretell.llm.template import ChatTemplate
from foretell.llm.text import TOKENIZER, Tokenizer
from foretell.store.manifest import LlmOptions
from foretell.store.package import Package


def open_generator(
    package: Package, settings: ReplicaSettings, generation: GenerationSettings = GenerationSettings()
) -> LlmGenerator:
    """Load the decoder, the tokenizer and the chat template of a package; `generation.draft` is a folder or empty.

    Raises `PackageError` when one of them is missing, damaged or does not fit the others, `ConfigError` when
    `settings.device` is not to be had here.
    """
    options = package.manifest.llm
    if options is None:
        raise PackageError(f"{package.path}: model.toml has no [llm] table; add the model again with `foretell add`")
    tokenizer = Tokenizer.load(package.path)
    template = ChatTemplate.load(package.path)
    with contextlib.ExitStack() as resources:
        executor, memory, budget = open_executor(package, options, settings, generation)
        resources.callback(executor.close)
        shape = executor.shape
        _check_agreement(package, options, tokenizer, shape.vocab)
        cache = RadixCache(memory.cache, shape.token_bytes) if memory.cache else NoPrefixCache()
        drafter, kv = _drafter(settings, generation, tokenizer, shape, memory.kv, resources)
        engine = Engine(executor, EngineSettings(budget, kv), cache, drafter)
        grammars = Grammars(package.path / TOKENIZER, shape.vocab, options.eos)
        limits = Limits(shape.context, shape.vocab, options.eos)
        intake = Intake(tokenizer, template, grammars, limits, options.sampling)
        return LlmGenerator(engine, intake, tokenizer, resources.pop_all().close)


def _drafter(
    settings: ReplicaSettings,
    generation: GenerationSettings,
    tokenizer: Tokenizer,
    shape: Shape,
    kv: int,
    resources: contextlib.ExitStack,
) -> tuple[Drafter, int]:
    """What guesses, and how many of the `kv` bytes it leaves for keys and values of the model itself."""
    if not generation.speculate:
        return NoDrafter(), kv
    if not generation.draft:
        return ForcedDrafter(NGramDrafter()), kv
    draft = Package.open(Path(generation.draft))
    options = draft.manifest.llm
    if options is None:
        raise PackageError(f"{draft.path}: [generation] draft must name a language model")
    theirs = Tokenizer.load(draft.path)
    if theirs.vocab_size != tokenizer.vocab_size or any(
        theirs.token_bytes(token) != tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)
    ):
        raise PackageError(
            f"{draft.path}: [generation] draft names a model with other tokens; its guesses mean nothing"
        )
    guessing = msgspec.structs.replace(generation, context=min(generation.context, options.context))
    executor = open_executor(draft, options, settings, guessing).executor
    resources.callback(executor.close)
    # The same number of tokens for both.
    capacity = kv // (shape.token_bytes + executor.shape.token_bytes)
    return ForcedDrafter(DraftModel(executor, shape.vocab, capacity=capacity)), capacity * shape.token_bytes


def _check_agreement(package: Package, options: LlmOptions, tokenizer: Tokenizer, vocab: int) -> None:
    if options.vocab != vocab:
        raise PackageError(
            f"{package.path}: model.toml says that the vocabulary has {options.vocab} tokens, the graph has {vocab}"
        )
    if tokenizer.vocab_size > vocab:
        raise PackageError(
            f"{package.path / TOKENIZER} has token ids up to {tokenizer.vocab_size - 1}, the model only"
            f" {vocab}; it belongs to another model"
        )
    if not all(0 <= token < vocab for token in options.eos):
        raise PackageError(f"{package.path}: [llm] eos holds {list(options.eos)}; token ids end at {vocab - 1}")
