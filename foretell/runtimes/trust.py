"""Code that comes with a package: refused unless the operator trusts it, and how it is loaded if so."""

import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from foretell.core.errors import PackageError, UntrustedCode
from foretell.store.package import Package


def title(package: Package) -> str:
    """What to call a package in a message: its own name, for its folder is often called by a number."""
    return package.manifest.package.name or package.path.name


def refuse_untrusted(package: Package, why: str) -> NoReturn:
    """Raise `UntrustedCode` that says what would run and what to do."""
    raise UntrustedCode(
        f"{title(package)}: {why}. Code in a package can do anything this process can: pass --trust-code if you"
        " trust whoever made it, or use a format that holds no code (ONNX, skops, a booster's own JSON or"
        " text)"
    )


def load_code(package: Package, file: str, trust_code: bool) -> ModuleType:
    """Run the package's Python file as a module of its own; modules beside it can be imported by it.

    Raises `UntrustedCode` without `trust_code`, `PackageError` if the file is missing or fails while it loads.
    """
    if not trust_code:
        refuse_untrusted(package, f"loading it runs the Python file {file}")
    return _run(package.file(file))


def load_file(path: Path, trust_code: bool) -> ModuleType:
    """The same for a file that the operator names and that is in no package."""
    if not trust_code:
        raise UntrustedCode(
            f"{path} is Python code, which can do anything this process can: pass --trust-code if you trust whoever"
            " wrote it"
        )
    return _run(path.resolve())


def _run(path: Path) -> ModuleType:
    name = f"foretell_package_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    _execute(module, path)
    return module


def _execute(module: ModuleType, path: Path) -> None:
    # Compiled here rather than by the import system: that would write __pycache__ into an immutable package.
    folder, writing = str(path.parent), sys.dont_write_bytecode
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        raise PackageError(f"{path.name} failed while it loaded: {type(error).__name__}: {error}") from error
    finally:
        sys.dont_write_bytecode = writing
        sys.path.remove(folder)
