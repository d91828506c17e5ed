"""torch on this machine: which device, how many threads. Knows no packages."""

import logging

import torch

from foretell.accel.hardware import usable_memory
from foretell.core.errors import ConfigError

LOG = logging.getLogger("foretell.accel.torch")


def prepare(device: str, threads: int, log: logging.Logger = LOG) -> torch.device:
    """Choose the device for `device` (auto, cpu, cuda), set the process's intra-op threads (0: all cores), log it.

    Raises `ConfigError` when the device is not to be had here.
    """
    here = torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f'device "{device}": torch models run on cpu or cuda; other devices are for ONNX models')
    if device == "cuda" and not here:
        built = "was built without CUDA" if torch.version.cuda is None else "finds no CUDA device or driver"
        raise ConfigError(f'device "cuda": the installed torch {torch.__version__} {built}; set device = "auto"')
    if threads:
        torch.set_num_threads(threads)
    chosen = "cuda" if here and device != "cpu" else "cpu"
    why = "the settings ask for it" if device != "auto" else ("CUDA is here" if here else "CUDA is not here")
    log.info("torch runs on %s, %d intra-op threads: %s", chosen, torch.get_num_threads(), why)
    return torch.device(chosen)


def sees_cuda() -> bool:
    """Whether the installed torch can compute on a CUDA device of this machine."""
    return bool(torch.cuda.is_available())


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken where tensors of `device` lie."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else usable_memory()
