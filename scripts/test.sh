#!/usr/bin/env bash
# The checks, then every test but the soak tests. Arguments go to pytest: `bash scripts/test.sh tests/store`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/check.sh
# Two at a time: most of them wait, for processes to start and for time to pass.
.venv/bin/pytest -m "not soak" -n 2 --dist loadfile -ra "$@"
