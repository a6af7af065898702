#!/usr/bin/env bash
# A Ray cluster over the nodes of a Slurm job, and one run or sweep on it; both end together.
#
# Costs: the allocation, whether it computes or not.
#
# Change the lines marked CHANGE; keys (WANDB_API_KEY) go along from the environment that you submit from. No container:
# the nodes need this folder and its .venv (`make .venv/installed`) on a file system that all of them see.
#   Submit:  sbatch clusters/slurm.sh jobs/pretrain.py --config jobs/configs/four-nodes.yaml --run-dir $SCRATCH/runs/four
#   Watch:   tail -f distmeta-JOB.log, squeue --me
#   End:     scancel --batch --signal TERM JOB    # leaves a checkpoint; scancel JOB does not wait for one
# Three minutes before its time is over the run leaves a checkpoint, and the job goes back into the queue and then on from
# it, as it does when Slurm takes its nodes away.
#SBATCH --job-name=distmeta
#SBATCH --nodes=4                # CHANGE
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64       # CHANGE: those of a node
#SBATCH --gpus-per-node=8        # CHANGE: leave it out where there are none
#SBATCH --mem=0                  # all of a node
#SBATCH --time=24:00:00          # CHANGE
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
fail() { echo "slurm.sh: $1" >&2; exit 1; }
[ $# -gt 0 ] || fail "which job? sbatch clusters/slurm.sh jobs/pretrain.py --config FILE ..."
export PATH="$PWD/.venv/bin:$PATH" # CHANGE: where the environment is
export PYTHONPATH=$PWD RAY_USAGE_STATS_ENABLED=0

# Others are on these nodes and networks: a token of this job's own, ports by its number, and files under its name.
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID
port=$((20000 + SLURM_JOB_ID % 10000))
# Not the node's name, which on many machines is 127.0.1.1 to itself: the address by which another would be reached.
head=$(python -c "import ray; print(ray.util.get_node_ip_address())")

# What one step has of a node the next one waits for, unless they overlap; since 22.05 a step isn't told of --cpus-per-task.
on_node() { srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --nodelist "$@"; }
# shellcheck disable=SC2016 # expanded on the node
start() {
  node=$1 started=$((started + 1)); shift
  on_node "$node" bash -c 'umask 077; mkdir -p "$RAY_TMPDIR"; trap "rm -rf $RAY_TMPDIR" EXIT; "$@"' start \
    ray start --block --temp-dir "$RAY_TMPDIR/$started" --num-cpus "$SLURM_CPUS_PER_TASK" \
    --num-gpus "${SLURM_GPUS_ON_NODE:-0}" "$@" &
}
# Tries a command again until it succeeds, while the nodes are there.
await() {
  until "$@" 2>/dev/null; do
    [ "$(jobs -rp | wc -l)" = "$started" ] || fail "Ray has ended on a node: its words are above"
    [ $SECONDS -lt 600 ] || fail "the nodes are not together after ten minutes"
    sleep 1
  done
}

started=0
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
start "${nodes[0]}" --head --node-ip-address "$head" --port "$port" --include-dashboard false
await bash -c ": </dev/tcp/$head/$port"
for node in "${nodes[@]:1}"; do start "$node" --address "$head:$port"; done
export RAY_ADDRESS=$head:$port
alive="import ray; ray.init(logging_level='ERROR'); exit(sum(node['Alive'] for node in ray.nodes()) < ${#nodes[@]})"
await python -c "$alive"
echo "slurm.sh: ${#nodes[@]} nodes after $SECONDS s: ${nodes[*]}"

# A shell hears of a signal while it waits for a process, not while it runs one.
python "$@" --resume &
job=$! again=""
trap 'again=yes; kill -TERM $job' USR1
trap 'kill -TERM $job' TERM
while kill -0 $job 2>/dev/null; do wait $job || true; done
wait $job && status=0 || status=$?
[ -z "$again" ] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
