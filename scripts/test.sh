#!/usr/bin/env bash
# The checks, then every test but the soak tests. Arguments go to pytest: `bash scripts/test.sh tests/store`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/check.sh
.venv/bin/pytest -m "not soak" -ra "$@"
