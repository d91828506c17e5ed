"""What this machine is: cores and memory that this process may use, accelerators, and the price of an hour.

Knows no models; `divide` says how many replicas of how many threads fit, the fleet decides whether to.
"""

import os
import subprocess
from pathlib import Path

import msgspec
import psutil

from foretell.core.settings import ReplicaSettings

DOLLARS_PER_CORE_HOUR = 0.04
DOLLARS_PER_GIB_HOUR = 0.005
"""A guess where no price is set: what general-purpose virtual machines rent for on demand, rounded."""


class Hardware(msgspec.Struct, frozen=True):
    """`cores` may be used by this process (affinity and container quota counted), `memory_bytes` likewise.

    `dollars_per_hour` is the price of the whole machine; `priced` tells a set price from a guessed one.
    """

    cores: int
    memory_bytes: int
    accelerators: tuple[str, ...] = ()
    dollars_per_hour: float = 0.0
    priced: bool = False

    def __str__(self) -> str:
        devices = ", ".join(self.accelerators) or "no accelerator"
        price = f"${self.dollars_per_hour:.3f} an hour{'' if self.priced else ' (a guess)'}"
        return f"{self.cores} cores, {self.memory_bytes / 2**30:.1f} GiB, {devices}, {price}"


def detect(dollars_per_hour: float | None = None, groups: Path = Path("/sys/fs/cgroup")) -> Hardware:
    """Look at this machine. `dollars_per_hour` is the operator's price; None guesses one from cores and memory."""
    cores = _cores(groups)
    memory = min(psutil.virtual_memory().total, _limit(groups / "memory.max"))
    guess = cores * DOLLARS_PER_CORE_HOUR + memory / 2**30 * DOLLARS_PER_GIB_HOUR
    priced = dollars_per_hour is not None
    return Hardware(cores, memory, _accelerators(), guess if dollars_per_hour is None else dollars_per_hour, priced)


def divide(settings: ReplicaSettings, cores: int) -> ReplicaSettings:
    """`settings` with count and threads filled in so that together they fit `cores`.

    Replicas before threads: two replicas of one thread each answer more rows a second than one of two threads,
    because operators don't wait for each other's threads, and a slow batch blocks only its own replica.
    """
    count, threads = settings.count, settings.threads
    if count == 0 and threads == 0:
        threads = 1
    if count == 0:
        count = max(cores // threads, 1)
    if threads == 0:
        threads = max(cores // count, 1)
    return msgspec.structs.replace(settings, count=count, threads=threads)


def _cores(groups: Path) -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (groups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return usable
    return usable if quota == "max" else max(1, min(usable, int(quota) // int(period)))


def _limit(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no file, or "max"
        return 2**63


def _accelerators() -> tuple[str, ...]:
    """Names of the NVIDIA devices that the driver lists; asks nothing where there is no driver."""
    if not Path("/proc/driver/nvidia/version").exists():
        return ()
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in listed.stdout.splitlines() if line.strip())
