#!/usr/bin/env bash
# Format, lint, types and import floors. Changes nothing; `make fix` mends what a tool can mend.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh test
export PATH="$PWD/.venv/bin:$PATH"

ruff format --check --quiet . || { echo 'check: run `make fix` to format these files' >&2; exit 1; }
ruff check --quiet .
mypy
lint-imports
