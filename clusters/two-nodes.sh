#!/usr/bin/env bash
# A Ray cluster of several nodes on this one Linux machine, to try out what only happens on several: each node has a host
# name, an address and a network of its own (network namespaces; needs root). It costs nothing. Ctrl-C ends all of it.
#   sudo clusters/two-nodes.sh                              # two nodes of one CPU each, which share this machine's files
#   sudo clusters/two-nodes.sh --nodes 4 --cpus 2
#   sudo clusters/two-nodes.sh --separate-files             # each its own file tree; nothing is shared but a bucket
#   sudo clusters/two-nodes.sh -- ray job submit --working-dir . -- python jobs/pretrain.py ...    # a command, then the end
#
# Submit, watch, end: it prints the two lines that a second terminal needs (`ray job submit`, `logs`, `stop`).
# Break something: `ip netns pids two-nodes-1-2 | xargs kill -9` ends node 2 of cluster 1, `ip link set two-nodes-1-2
# down` cuts its cable; it starts again by `ip netns exec two-nodes-1-2 /run/two-nodes/1/node-2`.
# With --separate-files a node's tree begins as a copy of this machine's (an overlay), /tmp and /dev/shm empty, and what it
# writes no other sees. The bucket is s3://two-nodes, of a server in memory (`moto_server`, of distmeta[test]).
set -euo pipefail
cd "$(dirname "$0")/.."

nodes=2 cpus=1 separate=""
while [ $# -gt 0 ]; do
  case $1 in
    --nodes) nodes=$2; shift 2 ;;
    --cpus) cpus=$2; shift 2 ;;
    --separate-files) separate=yes; shift ;;
    --) shift; break ;;
    *) echo "two-nodes.sh: $1: is no option: --nodes N, --cpus N, --separate-files, -- COMMAND" >&2; exit 2 ;;
  esac
done
fail() { echo "two-nodes.sh: $1" >&2; exit 2; }
[ "$(id -u)" = 0 ] || fail "network namespaces need root: sudo clusters/two-nodes.sh"
command -v ip >/dev/null || fail "ip: is not installed: install iproute2"
if [ -x .venv/bin/ray ]; then bin=$PWD/.venv/bin; else bin=${VIRTUAL_ENV:-}/bin; fi
[ -x "$bin/ray" ] || fail "no environment: run make .venv/installed first"
server=${MOTO_SERVER:-$bin/moto_server}
[ -z "$separate" ] || [ -x "$server" ] || fail "$server: is not there: install distmeta[test]"

# Whoever holds the lock of a number has its names and addresses, and clears away what a killed one has left there.
mkdir -p /run/two-nodes
for ((number = 1; number < 250; number++)); do
  exec 9>"/run/two-nodes/$number.lock"
  flock --nonblock 9 && break
done
name=two-nodes-$number folder=/run/two-nodes/$number network=10.231.$number
log() { echo "$folder/$1.log"; }

clear_away() {
  trap - EXIT
  trap '' INT TERM HUP
  for net in $(ip netns list | grep -o "^$name-[0-9]*"); do
    while [ -n "$(ip netns pids "$net")" ]; do # what is killed may just have started others
      ip netns pids "$net" | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
      sleep 0.1
    done
    ip link del "$net" 2>/dev/null || true # a mount namespace elsewhere may keep the network one
    ip netns del "$net"
  done
  for cable in $(ip -brief link | grep -o "^$name-[0-9]*"); do # of a namespace in which something still dies
    ip link del "$cable" 2>/dev/null || true
  done
  if [ -f "$folder/server.pid" ]; then kill "$(cat "$folder/server.pid")" 2>/dev/null || true; fi
  ip link del "$name" 2>/dev/null || true
  rm -rf "$folder" "/tmp/$name"
}
clear_away
trap clear_away EXIT
trap 'exit 130' INT TERM HUP
mkdir -m 700 "$folder" "/tmp/$name"

export PATH="$bin:$PATH" RAY_TMPDIR="/tmp/$name" RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-60} # in which a job that is stopped leaves a checkpoint
(umask 077 && ray get-auth-token --generate >/dev/null 2>&1) || fail "no token can be made in ~/.ray: set HOME"
unset RAY_ADDRESS
# What a node that is started again is told.
told=(PATH RAY_TMPDIR RAY_USAGE_STATS_ENABLED RAY_AUTH_MODE RAY_JOB_STOP_WAIT_TIME_S)

ip link add "$name" type bridge
ip addr add "$network.254/24" dev "$name"
ip link set "$name" up
if [ -n "$separate" ]; then
  export AWS_ENDPOINT_URL="http://$network.254:5000" AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
  export AWS_ACCESS_KEY_ID=$name AWS_SECRET_ACCESS_KEY=$name # any will do
  told+=(AWS_ENDPOINT_URL AWS_DEFAULT_REGION AWS_EC2_METADATA_DISABLED AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY)
  "$server" --host "$network.254" --port 5000 >"$(log server)" 2>&1 9>&- &
  echo $! >"$folder/server.pid"
fi

# Runs in the namespaces of a node: as a machine of its own, whose name is the loopback's, as Debian has it.
# shellcheck disable=SC2329 # called by the file that it is written to
node() {
  hostname "node-$1"
  printf '127.0.0.1 localhost\n127.0.1.1 node-%s\n' "$1" >"$folder/hosts-$1"
  tree=""
  if [ -n "$separate" ]; then
    layers=$folder/files-$1
    mkdir -p "$layers"
    mount -t tmpfs tmpfs "$layers"
    mkdir "$layers"/{upper,work,tree}
    tree=$layers/tree
    mount -t overlay overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" "$tree"
    for each in proc sys dev; do mount --rbind "/$each" "$tree/$each"; done
    mount -t tmpfs tmpfs "$tree/tmp"
  fi
  # Two nodes cannot share what Ray keeps on a machine: its sockets, and which address it has.
  mkdir -p "$folder/ray-$1" "$tree$RAY_TMPDIR"
  mount --bind "$folder/ray-$1" "$tree$RAY_TMPDIR"
  mount -t tmpfs tmpfs "$tree/dev/shm"
  mount --bind "$folder/hosts-$1" "$tree/etc/hosts"
  if [ "$1" = 1 ]; then
    set -- --head --port 6379 --dashboard-host "$network.1"
  else
    set -- --address "$network.1:6379"
  fi
  exec chroot "${tree:-/}" ray start --block --node-ip-address "$address" --num-cpus "$cpus" "$@"
}

for ((each = 1; each <= nodes; each++)); do
  net=$name-$each address=$network.$each
  ip netns add "$net"
  ip link add "$net" type veth peer name eth0 netns "$net"
  ip link set "$net" master "$name" up
  ip -n "$net" link set lo up
  ip -n "$net" addr add "$address/24" dev eth0
  ip -n "$net" link set eth0 up
  {
    echo '#!/usr/bin/env -S unshare --mount --uts bash'
    declare -p name folder network separate cpus address "${told[@]}"
    declare -f node
    echo "node $each"
  } >"$folder/node-$each"
  chmod 700 "$folder/node-$each"
  ip netns exec "$net" "$folder/node-$each" >"$(log "node-$each")" 2>&1 9>&- &
  pids[each]=$!
  # The others ask the first one, which has to be there.
  until grep -qs "Ray runtime started" "$(log "node-$each")"; do
    kill -0 "${pids[each]}" 2>/dev/null || { cat "$(log "node-$each")" >&2; fail "node $each did not start"; }
    sleep 0.2
  done
done

export RAY_API_SERVER_ADDRESS="http://$network.1:8265"
until ray job list >/dev/null 2>&1 9>&-; do
  kill -0 "${pids[1]}" 2>/dev/null || fail "the head node ended: $(tail -n 5 "$(log node-1)")"
  sleep 0.5
done
if [ -n "$separate" ]; then
  bucket="s3://two-nodes?allow_bucket_creation=true"
  python -c "from pyarrow.fs import FileSystem; FileSystem.from_uri('$bucket')[0].create_dir('two-nodes')"
fi

if [ $# -gt 0 ]; then
  "$@" 9>&-
  exit
fi
echo "$nodes nodes of $cpus CPUs, $network.1 to $network.$nodes; what they say is in $folder/*.log. In a second terminal:"
echo "  source $bin/activate"
echo "  export RAY_API_SERVER_ADDRESS=$RAY_API_SERVER_ADDRESS RAY_AUTH_MODE=token"
wait -n "${pids[1]}" || true
fail "the head node ended: $(tail -n 5 "$(log node-1)")"
