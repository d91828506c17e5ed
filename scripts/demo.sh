#!/usr/bin/env bash
# Register the demo models, serve them and send a few requests. Ctrl-C drains and ends everything.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh serve
exec .venv/bin/python -m examples.demo "$@"
