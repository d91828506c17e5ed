"""Who runs a job: a name for this process, and whether the process of another name is still there."""

import os
import socket
import uuid

import psutil


def this_process() -> str:
    """A name for this run of this process: host, process, when it began, and a token."""
    began = psutil.Process().create_time()
    return f"{socket.gethostname()}:{os.getpid()}:{began:.2f}:{uuid.uuid4().hex[:8]}"


def gone(owner: str) -> bool:
    """Whether the process is known to have ended; of another machine one cannot know."""
    host, pid, began, _ = owner.rsplit(":", 3)
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(pid))
        another = abs(process.create_time() - float(began)) > 0.05
        return another or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
