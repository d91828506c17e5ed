#!/usr/bin/env bash
# foretell beside other servers and stream processors on this machine; writes benchmarks/RESULTS.md, prints what streams
# do. With arguments only the servers. Needs wrk (a Debian package).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh test
.venv/bin/python -m benchmarks.run "$@"
[ $# -gt 0 ] || .venv/bin/python -m benchmarks.streams
