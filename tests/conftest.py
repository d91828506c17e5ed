"""What every test may rely on: both clients of the inference protocol can be imported in one process, and programs that
tests start do not compile what they import anew.
"""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from google.protobuf import descriptor_pool

# Where Python may not write bytecode beside the sources, it goes beside the environment: the tests start hundreds of
# programs, and each would spend more than a second on compiling.
if sys.dont_write_bytecode:
    sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(sys.prefix, "pycache")))
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What a shell without job control starts in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# tritonclient and kserve both define the package "inference" in protobuf's default pool, which then refuses the
# one that is imported second. Here tritonclient's definitions go to a pool of their own; the client is unchanged.
with mock.patch.object(descriptor_pool, "Default", return_value=descriptor_pool.DescriptorPool()):
    importlib.import_module("tritonclient.grpc")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
