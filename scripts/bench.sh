#!/usr/bin/env bash
# foretell beside other servers on this machine; writes benchmarks/RESULTS.md. Needs wrk (a Debian package).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh test
.venv/bin/python -m benchmarks.run "$@"
[ $# -gt 0 ] || .venv/bin/python -m benchmarks.batch
