#!/usr/bin/env bash
# Mend what ruff can mend: imports, simple lints, format.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh test
.venv/bin/ruff check --quiet --fix . || true
.venv/bin/ruff format .
