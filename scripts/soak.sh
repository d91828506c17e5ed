#!/usr/bin/env bash
# The tests that run for minutes: load, with versions swapped and replicas killed meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh test
.venv/bin/pytest -m soak --timeout 1800 "$@"
