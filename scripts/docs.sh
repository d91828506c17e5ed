#!/usr/bin/env bash
# Write the generated pages anew: docs/cli.md from the command line's own help. A test fails when it is stale.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh test
.venv/bin/python scripts/cli_docs.py "$@"
