#!/usr/bin/env bash
# Environments for clients that do not go together with the other tests (.peers/NAME).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh test
.venv/bin/python -c 'from benchmarks.environments import ensure; ensure("litellm")'
