"""`open_generator`: a package of runtime "llm" becomes a generator. The one place that knows all parts of the room."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from foretell.accel.hardware import usable_memory
from foretell.core.errors import PackageError
from foretell.core.settings import GenerationSettings, ReplicaSettings
from foretell.llm.engine import Engine, EngineSettings
from foretell.llm.executors.onnx import OnnxExecutor, OnnxSettings, open_onnx
from foretell.llm.forced import ForcedDrafter
from foretell.llm.generator import LlmGenerator
from foretell.llm.grammar import Grammars
from foretell.llm.intake import Intake, Limits
from foretell.llm.prefix_cache import NoPrefixCache, RadixCache
from foretell.llm.speculate import Drafter, DraftModel, NGramDrafter, NoDrafter
from foretell.llm.template import ChatTemplate
from foretell.llm.text import TOKENIZER, Tokenizer
from foretell.store.manifest import LlmOptions
from foretell.store.package import Package

KV_SHARE, CACHE_SHARE = 0.4, 0.1
"""Of the memory that there is: for keys and values of running sequences, and for prompts seen before."""


class Memory(NamedTuple):
    """Bytes for keys and values, and for the prefix cache."""

    kv: int
    cache: int


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
        executor = _open_executor(package, options.context, settings, generation)
        resources.callback(executor.close)
        shape = executor.shape
        _check_agreement(package, options, tokenizer, shape.vocab)
        memory = share_memory(settings, generation)
        cache = RadixCache(memory.cache, shape.token_bytes) if memory.cache else NoPrefixCache()
        drafter = _drafter(settings, generation, tokenizer, shape.vocab, resources)
        engine = Engine(executor, EngineSettings(kv_bytes=memory.kv), cache, drafter)
        grammars = Grammars(package.path / TOKENIZER, shape.vocab, options.eos)
        limits = Limits(options.context, shape.vocab, options.eos)
        intake = Intake(tokenizer, template, grammars, limits, options.sampling)
        return LlmGenerator(engine, intake, tokenizer, resources.pop_all().close)


def share_memory(settings: ReplicaSettings, generation: GenerationSettings) -> Memory:
    """What the engine may use: what was said, else a share of the replica's limit, else of its part of the machine."""
    there = settings.memory_limit_mb * 2**20 or usable_memory() // max(settings.count, 1)
    kv = generation.kv_memory_mb * 2**20 or int(there * KV_SHARE)
    cache = generation.prefix_cache_mb
    return Memory(kv, int(there * CACHE_SHARE) if cache is None else cache * 2**20)


def _open_executor(
    package: Package, context: int, settings: ReplicaSettings, generation: GenerationSettings
) -> OnnxExecutor:
    device = "cpu" if settings.device == "auto" else settings.device
    return open_onnx(package.artifact, OnnxSettings(generation.slots, context, settings.threads, device))


def _drafter(
    settings: ReplicaSettings,
    generation: GenerationSettings,
    tokenizer: Tokenizer,
    vocab: int,
    resources: contextlib.ExitStack,
) -> Drafter:
    if not generation.speculate:
        return NoDrafter()
    if not generation.draft:
        return ForcedDrafter(NGramDrafter())
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
    executor = _open_executor(draft, options.context, settings, generation)
    resources.callback(executor.close)
    return ForcedDrafter(DraftModel(executor, vocab))


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
