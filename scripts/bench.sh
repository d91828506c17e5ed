#!/usr/bin/env bash
# foretell beside others on this machine; writes benchmarks/RESULTS.md. Needs wrk and the brokers (Debian packages).
# Arguments go to the servers' benchmark alone; without any, language models, batch jobs and streams follow.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh test
.venv/bin/python -m benchmarks.run "$@"
[ $# -gt 0 ] || for part in llm batch streams stream_ends; do .venv/bin/python -m "benchmarks.$part"; done
