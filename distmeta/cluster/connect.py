"""Getting at a Ray cluster: the one that RAY_ADDRESS names, or one on this machine for the time of the command."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distmeta.cluster.head_node import head_node
from distmeta.cluster.machine import available_cpus
from distmeta.cluster.named_cluster import connection, named_cluster, reach
from distmeta.cluster.watch import watched_head_node
from distmeta.config import Config
from distmeta.errors import UserError


def check_workers_fit(config: Config) -> None:
    """Refuses, before anything starts, a cluster that cannot be used, more workers than there are CPUs for, and a GPU
    that this machine does not have.

    Raises:
        UserError: with both numbers; or RAY_ADDRESS names no cluster that can be used from here.
    """
    if named_cluster():
        _check(config, reach().cpus, "the cluster has")
        return
    if config.engine.device == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device: cuda needs a GPU, and this machine has none; use auto or cpu")
    _check(config, [available_cpus()], "this machine has")


def _check(config: Config, cpus_of_nodes: list[float], has: str) -> None:
    train = config.train
    if sum(cpus // train.cpus_per_worker for cpus in cpus_of_nodes) < train.fewest_workers:
        cpus = sum(cpus_of_nodes)
        needed = train.fewest_workers * train.cpus_per_worker
        where = f"{cpus:g} on {len(cpus_of_nodes)} nodes" if len(cpus_of_nodes) > 1 else f"{cpus:g}"
        raise UserError(
            f"train.num_workers: {train.fewest_workers} workers of {train.cpus_per_worker:g} CPUs need {needed:g}, "
            f"{has} {where}: lower train.num_workers, or set train.cpus_per_worker to "
            f"{int(100 * cpus / train.fewest_workers) / 100:g} so that they share"
        )


def prepare_environment() -> None:
    """What Ray reads from the environment of a process that starts runs."""
    # The controller looks after its workers this often; Ray's own default of 2 s is long beside a small run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    # `Scaling` looks after nodes that are about to be taken away; Ray's own watcher costs each run a process.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a run is told to others


def runs_at_a_time(config: Config, nodes: list[dict[str, float]]) -> int:
    """How many runs of the configuration the nodes hold, given the CPUs and GPUs of each.

    Workers of a run may stand on several nodes, so it is the workers that are counted.
    """
    train = config.train
    workers = sum(int(node.get("CPU", 0) // train.cpus_per_worker) for node in nodes)
    gpus = sum(node.get("GPU", 0) for node in nodes)
    if gpus and config.engine.device != "cpu":
        workers = min(workers, int(gpus))
    return workers // train.most_workers


@contextmanager
def ray_cluster(config: Config) -> Iterator[None]:
    """Connects to the cluster, or starts one here and ends it afterwards.

    Raises:
        UserError: it cannot be reached or started, or cannot hold the workers.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    with connection() if named_cluster() else head_node(available_cpus()):
        _check(config, [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]], "the cluster has")
        with watched_head_node():
            yield
