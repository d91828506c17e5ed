"""Who runs a job: a name for this process, and whether the process of another name is still there."""

import contextlib
import os
import socket
import uuid
from pathlib import Path

import psutil


def this_process() -> str:
    """A name for this run of this process: whose processes it sees, its number, when it began, and a token."""
    return f"{_sight()}:{os.getpid()}:{_began(psutil.Process())}:{uuid.uuid4().hex[:8]}"


def gone(owner: str) -> bool:
    """Whether the process is known to have ended; of another machine or another container one cannot know."""
    sight, pid, began, _ = owner.rsplit(":", 3)
    if sight != _sight():
        return False
    try:
        process = psutil.Process(int(pid))
        return _began(process) != began or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _sight() -> str:
    """Equal for processes that see each other under one number: containers may share the name of their host. On Linux
    the start of the machine and the namespace of its processes tell.
    """
    names = [socket.gethostname()]
    with contextlib.suppress(OSError):
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        names.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return "/".join(names)


def _began(process: psutil.Process) -> str:
    """When a process began; on Linux in ticks since the machine's start, which setting its clock does not change."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]
    return f"{process.create_time():.2f}"
