"""Ray clusters of several nodes on this machine, whose nodes come and go."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from ray._private import services
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.cluster_utils import Cluster

from distmeta.cluster.named_cluster import reach
from distmeta.errors import UserError


@contextmanager
def cluster_of(*cpus: int, **options: Any) -> Iterator[Cluster]:
    """A cluster with a node for each number of CPUs, the head node first, which commands that are started use."""
    with mock.patch.dict(os.environ, {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}):
        head = {"num_cpus": cpus[0], "include_dashboard": False, "object_store_memory": 100_000_000, **options}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for number in cpus[1:]:
                add_node(cluster, number)
            with mock.patch.dict(os.environ, {"RAY_ADDRESS": cluster.address}):
                yield cluster
        finally:
            cluster.shutdown()


def add_node(cluster: Cluster, cpus: int = 1) -> Any:
    """A new node of the cluster."""
    return cluster.add_node(num_cpus=cpus, object_store_memory=100_000_000)


def lose(cluster: Cluster, node: Any) -> None:
    """Takes a node away as a power cut does."""
    cluster.remove_node(node, allow_graceful=False)


@contextmanager
def growing_cluster(folder: Path, *, v2: bool, most: int = 2, node: dict[str, int] | None = None) -> Iterator[str]:
    """A head node without CPUs and Ray's own fake autoscaler, which starts up to `most` nodes on this machine; commands
    that are started meanwhile use it. Yields its address.

    Not Ray's `AutoscalingCluster`, which begins and ends by ending every Ray of the machine.
    """
    address = f"{services.get_node_ip_address()}:{_free_port()}"
    kinds = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    kinds["worker"] = {"resources": node or {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": most}
    # By the name of its class, since the default configuration of the name that Ray has for it is in no wheel.
    fake = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
    provider: dict[str, Any] = {"type": "external", "module": fake}
    provider |= {"gcs_address": address, "use_node_id_as_ip": True}
    provider |= {"disable_node_updaters": True, "disable_launch_config_check": True}
    if v2:
        provider |= {"launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID}
    empty = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    empty += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude")
    config = {"cluster_name": "fake", "max_workers": most, "idle_timeout_minutes": 1.0, "upscaling_speed": 1.0}
    config |= {"provider": provider, "available_node_types": kinds, "head_node_type": "ray.head.default"}
    config |= {"auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False, "rsync_filter": []}
    file = folder / "autoscaler.json"
    file.write_text(json.dumps(config | {key: [] for key in empty}))
    changed = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_FAKE_CLUSTER": "1"}
    changed |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    if v2:
        changed |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID}
        changed |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    command = ["start", "--head", "--block", f"--port={address.rpartition(':')[2]}", "--num-cpus=0"]
    command += ["--include-dashboard=false", f"--autoscaling-config={file}", "--object-store-memory=100000000"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command],
            env=os.environ | changed,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        with mock.patch.dict(os.environ, {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}):
            _wait_until_up(120)
            yield address
    finally:
        every = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in every:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()


def _wait_until_up(within: float) -> None:
    deadline = time.monotonic() + within
    while True:
        try:
            reach()
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
