#!/usr/bin/env bash
# A one-machine Ray cluster with its job server, to submit jobs to; Ctrl-C ends it, and it costs nothing. Options go to
# `ray start`.
#   clusters/local.sh
#   clusters/local.sh --num-cpus 8
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -x .venv/bin/ray ]; then
  bin=$PWD/.venv/bin
elif [ -x "${VIRTUAL_ENV:-}/bin/ray" ]; then
  bin=$VIRTUAL_ENV/bin
else
  make --silent .venv/installed
  bin=$PWD/.venv/bin
fi

# The `python` of a job is the first one on the path of the cluster.
export PATH="$bin:$PATH"
# Nothing about the cluster is told to others.
export RAY_USAGE_STATS_ENABLED=0
# Who may submit a job may run anything as this user, so a job server asks for a token: that of ~/.ray/auth_token.
export RAY_AUTH_MODE=token
(umask 077 && ray get-auth-token --generate >/dev/null 2>&1) ||
  { echo "clusters/local.sh: no token can be made in ~/.ray: set HOME to a folder that can be written" >&2; exit 2; }
# Seconds in which a job that is stopped may leave a checkpoint; Ray's own 3 are too few.
export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-60}

cpus=$(python -c "from distmeta.cluster.machine import available_cpus; print(available_cpus())")
exec ray start --head --block --num-cpus "$cpus" --dashboard-host 127.0.0.1 "$@"
