"""Which executor runs a package's decoder, on which device, with which memory. Knows no engine and no text.

torch is optional and heavy: it is imported when it is chosen. Whether there is anything for it to run on is asked of
the driver first.
"""

import importlib
import importlib.util
import logging
from typing import Any, Literal, NamedTuple

from foretell.accel.hardware import cuda_devices, usable_memory
from foretell.core.errors import ConfigError, PackageError
from foretell.core.settings import GenerationSettings, ReplicaSettings
from foretell.llm.executors.base import Executor
from foretell.llm.executors.onnx import OnnxSettings, open_onnx
from foretell.llm.scheduler import Budget
from foretell.store.manifest import LlmOptions
from foretell.store.package import Package

LOG = logging.getLogger("foretell.llm.opening")

TORCH, GRAPH_WEIGHTS = "foretell.llm.executors.torch", "foretell.llm.graph_weights"
KV_SHARE, CACHE_SHARE = 0.4, 0.1
"""Of the memory that there is: for keys and values of running sequences, and for prompts seen before."""

DEVICE_KV_SHARE = 0.7
"""Of what a GPU has left when the weights are there, divided by the replicas. It is taken whole at the start."""

DEVICE_BUDGET = Budget(chunk=512, alone=4096, least=64)
"""A GPU reads hundreds of prompt tokens in the time of one."""


class Memory(NamedTuple):
    """Bytes for keys and values, and for the prefix cache."""

    kv: int
    cache: int


class Opened(NamedTuple):
    """An executor, what the engine may use beside it, and how many prompt tokens it should be given at a time."""

    executor: Executor
    memory: Memory
    budget: Budget


class Chosen(NamedTuple):
    """The executor, the device it is told, and one sentence that says why."""

    executor: Literal["onnx", "torch"]
    device: str
    why: str


def choose(executor: str, device: str, *, devices: int, torch: bool) -> Chosen:
    """Pick by the settings, the CUDA `devices` that the driver shows, and whether torch is installed.

    Raises `ConfigError` when what was asked for needs torch, naming the extra that brings it.
    """
    if executor == "onnx":
        return Chosen("onnx", "cpu" if device == "auto" else device, "the settings ask for it")
    if executor == "torch" or device == "cuda":
        asked = 'executor "torch"' if executor == "torch" else 'device "cuda": language models run there on torch, it'
        if not torch:
            raise ConfigError(
                f"{asked} needs the Python package torch, which is not installed: pip install 'foretell[torch]', or"
                ' set device = "auto" and executor = "auto"'
            )
        return Chosen("torch", device, "the settings ask for it")
    if device != "auto":
        return Chosen("onnx", device, "the settings ask for the device")
    if not devices:
        return Chosen("onnx", "cpu", "no CUDA device is here")
    if not torch:
        return Chosen("onnx", "cpu", "a CUDA device is here, but not torch, which would use it (foretell[torch])")
    return Chosen("torch", "cuda", "a CUDA device is here")


def open_executor(package: Package, options: LlmOptions, settings: ReplicaSettings, told: GenerationSettings) -> Opened:
    """Load the decoder. Raises `ConfigError` when settings and machine don't agree, `PackageError` for a bad graph."""
    if told.context > options.context:
        raise ConfigError(
            f"[generation] context is {told.context}, and the model was made for {options.context} tokens; set at most"
            " that, or 0"
        )
    context = told.context or options.context
    here = importlib.util.find_spec("torch") is not None
    devices = cuda_devices()
    chosen = choose(told.executor, settings.device, devices=devices, torch=here)
    automatic = told.executor == "auto" and settings.device == "auto"
    if chosen.executor == "torch" and automatic and (problem := _obstacle(package)):
        chosen = Chosen("onnx", "cpu", problem)
    level = logging.WARNING if automatic and devices and chosen.executor == "onnx" else logging.INFO
    LOG.log(level, "%s runs on %s, executor %s: %s", package.path.name, chosen.device, chosen.executor, chosen.why)
    if chosen.executor == "torch":
        return _open_torch(package, options, context, chosen.device, settings, told)
    if told.dtype != "auto":
        raise ConfigError(
            f'[generation] dtype "{told.dtype}" is for executor "torch"; ONNX Runtime computes as the package was added'
            " (foretell add --precision)"
        )
    executor = open_onnx(package.artifact, OnnxSettings(told.slots, context, settings.threads, chosen.device))
    return Opened(executor, share_memory(settings, told), Budget())


def share_memory(settings: ReplicaSettings, told: GenerationSettings) -> Memory:
    """What the engine may use: what was said, else a share of the replica's limit, else of its part of the machine."""
    there = settings.memory_limit_mb * 2**20 or usable_memory() // max(settings.count, 1)
    kv = told.kv_memory_mb * 2**20 or int(there * KV_SHARE)
    cache = told.prefix_cache_mb
    return Memory(kv, int(there * CACHE_SHARE) if cache is None else cache * 2**20)


def _obstacle(package: Package) -> str:
    """Why torch cannot run the package on the CUDA device that is here; "" if it can."""
    if not _module("foretell.accel.torch").sees_cuda():
        return "a CUDA device is here, but the installed torch cannot use it"
    try:
        _module(GRAPH_WEIGHTS).read_graph(package.artifact)
    except PackageError as error:
        return error.message
    return ""


def _open_torch(
    package: Package,
    options: LlmOptions,
    context: int,
    device: str,
    settings: ReplicaSettings,
    told: GenerationSettings,
) -> Opened:
    torch, share = _module(TORCH), DEVICE_KV_SHARE / max(settings.count, 1)
    spec, weights = _module(GRAPH_WEIGHTS).read_graph(package.artifact)
    dtype = "float32" if told.dtype == "auto" and options.precision == "fp32" else told.dtype
    asked = torch.TorchSettings(told.slots, context, settings.threads, device, dtype, told.kv_memory_mb * 2**20, share)
    executor: Any = torch.open_torch(spec, weights, asked)
    if executor.lazy:
        return Opened(executor, share_memory(settings, told), Budget())
    shape = executor.shape
    cache = told.prefix_cache_mb
    left = int(executor.free_memory() * CACHE_SHARE / (1 - DEVICE_KV_SHARE) / max(settings.count, 1))
    memory = Memory(shape.slots * shape.context * shape.token_bytes, left if cache is None else cache * 2**20)
    return Opened(executor, memory, DEVICE_BUDGET if executor.device == "cuda" else Budget())


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        extra = {"torch": "torch", "onnx": "llm"}.get(missing)
        if extra is None:
            raise
        raise ConfigError(
            f'executor "torch" needs the Python package {missing}, which is not installed: pip install'
            f" 'foretell[{extra}]'"
        ) from None
