"""An environment of its own for each peer: finds an interpreter, makes `.peers/NAME`, installs pinned packages.

Knows nothing of servers or load.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers"
APPS = Path(__file__).resolve().parent / "peers"

_PROBE = """
import json, sys, sysconfig
get = sysconfig.get_config_var
print(json.dumps({"version": "%d.%d" % sys.version_info[:2], "home": sys.base_prefix,
    "library": get("LIBDIR") + "/" + (get("INSTSONAME") or "") if get("Py_ENABLE_SHARED") else ""}))
"""


class Unavailable(Exception):
    """Something this machine lacks; the message says what and how to get it. The bench skips and reports it."""


def probe(python: str | Path) -> dict[str, str] | None:
    """`version` ("3.11"), `home` and `library` (path of the shared libpython, "" if static), or None."""
    try:
        done = subprocess.run([str(python), "-c", _PROBE], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return json.loads(done.stdout) if done.returncode == 0 else None


def find_python(versions: tuple[str, ...], shared: bool = False) -> Path:
    """An interpreter of one of `versions`; with `shared`, one that has a libpython*.so. Raises `Unavailable`."""
    names = [sys.executable, *(f"python{v}" for v in versions)]
    candidates = [found for name in names if (found := shutil.which(name))]
    if uv := shutil.which("uv"):
        for version in versions:
            done = subprocess.run([uv, "python", "find", version], capture_output=True, text=True)
            candidates += [done.stdout.strip()] if done.returncode == 0 else []
    for candidate in candidates:
        facts = probe(candidate)
        if facts and facts["version"] in versions and (not shared or Path(facts["library"]).is_file()):
            return Path(candidate)
    kind = "with a shared libpython (Debian: libpython3.X)" if shared else ""
    raise Unavailable(f"no Python {' or '.join(versions)} {kind} found; install one, or uv".replace("  ", " "))


def ensure(name: str, versions: tuple[str, ...] = ("3.11", "3.12", "3.10"), shared: bool = False) -> Path:
    """The interpreter of `.peers/NAME` with `peers/NAME/requirements.txt` installed; made once, kept while equal."""
    requirements = APPS / name / "requirements.txt"
    home = PEERS / name
    python = home / "bin" / "python"
    stamp = home / ".installed"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest and probe(python):
        return python
    base = find_python(versions, shared)
    PEERS.mkdir(exist_ok=True)
    shutil.rmtree(home, ignore_errors=True)
    print(f"installing {name} into {home.relative_to(ROOT)} …", flush=True)
    if uv := shutil.which("uv"):
        commands = [
            [uv, "venv", "-q", "--python", str(base), str(home)],
            [uv, "pip", "install", "-q", "--python", str(python), "-r", str(requirements)],
        ]
    else:
        commands = [
            [str(base), "-m", "venv", str(home)],
            [str(python), "-m", "pip", "install", "-q", "-r", str(requirements)],
        ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(home, ignore_errors=True)
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise Unavailable(f"installing {name} failed: {''.join(reason)}")
    stamp.write_text(digest)
    return python


def require_tool(command: str, package: str) -> str:
    """The path of a program, or `Unavailable` naming the Debian package that has it."""
    if found := shutil.which(command):
        return found
    raise Unavailable(f"{command} is missing: apt-get install {package}")
