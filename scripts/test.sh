#!/usr/bin/env bash
# The checks, then every test but the soak tests, two files at a time. Arguments go to pytest:
# `bash scripts/test.sh tests/store`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/check.sh
.venv/bin/pytest -n 2 --dist loadfile -m "not soak" -ra "$@"
