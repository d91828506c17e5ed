"""What this process may use of the machine. Knows no models; `fleet.spec.fit` divides the cores among replicas."""

import ctypes
import os
import sys
from pathlib import Path

import psutil


def usable_cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use, at least 1: its CPU affinity, and the quota of its container if it has one.

    A container with a quota still sees every core of its host; threads beyond the quota only get throttled.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (groups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return usable
    return usable if quota == "max" else max(1, min(usable, int(quota) // int(period)))


def usable_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process may still take: what is available, and what its container's limit leaves."""
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = (int((groups / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no container, or no limit ("max")
        return available
    return max(0, min(available, limit - used))


def cuda_devices() -> int:
    """How many CUDA devices the driver shows to this process; 0 without a driver. Loads the driver, not torch."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int()
        found = not driver.cuInit(0) and not driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):
        return 0
    return count.value if found else 0
