"""Ray clusters of several nodes on this machine, whose nodes come and go."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from ray.cluster_utils import Cluster


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
