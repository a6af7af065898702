"""Getting at a Ray cluster: the one that RAY_ADDRESS names, or one on this machine for the time of the command."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from distmeta.config import Config
from distmeta.errors import UserError


def check_workers_fit(config: Config) -> None:
    """Refuses, before anything starts, more workers than this machine has CPUs for, and a GPU that it does not have.

    Raises:
        UserError: with both numbers; never where RAY_ADDRESS names a cluster, whose size is not known yet.
    """
    if "RAY_ADDRESS" not in os.environ:
        if config.engine.device == "cuda" and not torch.cuda.is_available():
            raise UserError("engine.device: cuda needs a GPU, and this machine has none; use auto or cpu")
        _check(config, [len(os.sched_getaffinity(0))], "this machine has")


def _check(config: Config, cpus_of_nodes: list[float], has: str) -> None:
    train = config.train
    if sum(cpus // train.cpus_per_worker for cpus in cpus_of_nodes) < train.num_workers:
        cpus = sum(cpus_of_nodes)
        needed = train.num_workers * train.cpus_per_worker
        where = f"{cpus:g} on {len(cpus_of_nodes)} nodes" if len(cpus_of_nodes) > 1 else f"{cpus:g}"
        raise UserError(
            f"train.num_workers: {train.num_workers} workers of {train.cpus_per_worker:g} CPUs need {needed:g}, "
            f"{has} {where}: lower train.num_workers, or set train.cpus_per_worker to "
            f"{int(100 * cpus / train.num_workers) / 100:g} so that they share"
        )


def prepare_environment() -> None:
    """What Ray reads from the environment of a process that starts runs."""
    # The controller looks after its workers this often; Ray's own default of 2 s is long beside a small run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")


def runs_at_a_time(config: Config, nodes: list[dict[str, float]]) -> int:
    """How many runs of the configuration the nodes hold, given the CPUs and GPUs of each.

    Workers of a run may stand on several nodes, so it is the workers that are counted.
    """
    train = config.train
    workers = sum(int(node.get("CPU", 0) // train.cpus_per_worker) for node in nodes)
    gpus = sum(node.get("GPU", 0) for node in nodes)
    if gpus and config.engine.device != "cpu":
        workers = min(workers, int(gpus))
    return workers // train.num_workers


@contextmanager
def ray_cluster(config: Config) -> Iterator[None]:
    """Connects to the cluster, or starts one here and ends it afterwards.

    Raises:
        UserError: the cluster cannot hold the workers.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if "RAY_ADDRESS" in os.environ:
            ray.init(**quiet)
        else:
            # A watcher of machines about to be taken away costs each run a process, and this is the only machine.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            ray.init(address="local", num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(
            f"Ray: {str(error).strip().splitlines()[0]} (RAY_ADDRESS={os.environ.get('RAY_ADDRESS')})"
        ) from None
    try:
        _check(config, [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]], "the cluster has")
        yield
    finally:
        ray.shutdown()
