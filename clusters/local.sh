#!/usr/bin/env bash
# A one-machine Ray cluster with its job server, to submit jobs to; Ctrl-C ends it. Options go to `ray start`.
#   clusters/local.sh --num-cpus 8
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/ray start --head --block --dashboard-host 127.0.0.1 "$@"
