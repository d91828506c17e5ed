"""`open_generator`: a package of runtime "llm" becomes a generator. The one place that knows all parts of the room."""

from typing import NamedTuple

from foretell.accel.hardware import usable_memory
from foretell.core.errors import PackageError
from foretell.core.settings import ReplicaSettings
from foretell.llm.engine import Engine, EngineSettings
from foretell.llm.executors.onnx import OnnxSettings, open_onnx
from foretell.llm.generator import LlmGenerator
from foretell.llm.grammar import Grammars
from foretell.llm.intake import Intake, Limits
from foretell.llm.prefix_cache import RadixCache
from foretell.llm.speculate import NGramDrafter
from foretell.llm.template import ChatTemplate
from foretell.llm.text import TOKENIZER, Tokenizer
from foretell.store.manifest import LlmOptions
from foretell.store.package import Package

SLOTS = 64
"""Sequences that run at a time; more wait. Memory is taken as they grow, so empty slots cost nothing."""
KV_SHARE, CACHE_SHARE = 0.4, 0.1
"""Of the memory that there is: for keys and values of running sequences, and for prompts seen before."""


class Memory(NamedTuple):
    """Bytes for keys and values, and for the prefix cache."""

    kv: int
    cache: int


def open_generator(package: Package, settings: ReplicaSettings) -> LlmGenerator:
    """Load the decoder, the tokenizer and the chat template of a package.

    Raises `PackageError` when one of them is missing, damaged or does not fit the others, `ConfigError` when
    `settings.device` is not to be had here.
    """
    options = package.manifest.llm
    if options is None:
        raise PackageError(f"{package.path}: model.toml has no [llm] table; add the model again with `foretell add`")
    tokenizer = Tokenizer.load(package.path)
    template = ChatTemplate.load(package.path)
    device = "cpu" if settings.device == "auto" else settings.device
    executor = open_onnx(package.artifact, OnnxSettings(SLOTS, options.context, settings.threads, device))
    try:
        shape = executor.shape
        _check_agreement(package, options, tokenizer, shape.vocab)
        memory = share_memory(settings)
        cache = RadixCache(memory.cache, shape.token_bytes)
        engine = Engine(executor, EngineSettings(kv_bytes=memory.kv), cache, NGramDrafter())
        grammars = Grammars(package.path / TOKENIZER, shape.vocab, options.eos)
        limits = Limits(options.context, shape.vocab, options.eos)
        intake = Intake(tokenizer, template, grammars, limits, options.sampling)
        return LlmGenerator(engine, intake, tokenizer, executor.close)
    except Exception:
        executor.close()
        raise


def share_memory(settings: ReplicaSettings) -> Memory:
    """What the engine may use, of the replica's limit if it has one."""
    there = settings.memory_limit_mb * 2**20 or usable_memory()
    return Memory(int(there * KV_SHARE), int(there * CACHE_SHARE))


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
