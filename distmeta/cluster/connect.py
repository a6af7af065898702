"""Getting at a Ray cluster: the one that RAY_ADDRESS names, or one on this machine for the time of the command; and
whether there is room in it for a run, or can be."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from distmeta.cluster.growth import Growth, growth, whole_workers
from distmeta.cluster.head_node import head_node
from distmeta.cluster.machine import available_cpus
from distmeta.cluster.named_cluster import connection, named_cluster, reach
from distmeta.cluster.watch import OWN, patience_with_named, watched_head_node
from distmeta.config import Config
from distmeta.errors import UserError

logger = logging.getLogger(__name__)

Nodes = Sequence[Mapping[str, float]]
"""The resources of each node that is there."""


def check_workers_fit(config: Config) -> None:
    """Refuses, before anything starts, a cluster that cannot be used, more workers than there are or can be CPUs for,
    and a GPU that this machine does not have.

    Raises:
        UserError: with both numbers; or RAY_ADDRESS names no cluster that can be used from here.
    """
    if named_cluster():
        cluster = reach()
        _check(config, cluster.nodes, "the cluster has", cluster.growth)
        return
    if config.engine.device == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device: cuda needs a GPU, and this machine has none; use auto or cpu")
    _check(config, [{"CPU": available_cpus()}], "this machine has")


def _check(config: Config, nodes: Nodes, has: str, growing: Growth | None = None) -> None:
    """Refuses workers for which there is no room and can be none; where there can be, `Scaling` waits."""
    train = config.train
    each = {"CPU": train.cpus_per_worker}
    if _most(each, nodes, growing) >= train.fewest_workers:
        return
    cpus = sum(node.get("CPU", 0) for node in nodes)
    needed = train.fewest_workers * train.cpus_per_worker
    where = f"{cpus:g} on {len(nodes)} nodes" if len(nodes) > 1 else f"{cpus:g}"
    if growing:
        where += f" and can grow to have room for {_most(each, nodes, growing):g}"
        remedy = "lower train.num_workers, or raise max_workers of its node types"
    elif cpus:
        share = int(100 * cpus / train.fewest_workers) / 100
        remedy = f"lower train.num_workers, or set train.cpus_per_worker to {share:g} so that they share"
    else:
        remedy = "start nodes that have some"
    raise UserError(
        f"train.num_workers: {train.fewest_workers} workers of {train.cpus_per_worker:g} CPUs need {needed:g}, "
        f"{has} {where}: {remedy}"
    )


def _most(each: Mapping[str, float], nodes: Nodes, growing: Growth | None) -> float:
    """The most workers that there is room for now or can be; infinite where that is not known."""
    now = sum(whole_workers(node, each) for node in nodes)
    if growing is None:
        return now
    later = growing.workers(lambda node: whole_workers(node, each))
    heads = sum(whole_workers(node, each) for node in nodes if "node:__internal_head__" in node)
    return float("inf") if later is None else max(now, heads + later)


def workers_of(config: Config) -> tuple[dict[str, float], int]:
    """What each worker takes of the cluster that Ray is connected to, a GPU where the run is to use some; and the most
    workers to ask it for, which is no more than it is known to grow to, since an autoscaler may start nothing at all
    for a request that it can never fulfil.

    `engine.device: auto` takes GPUs where any are there, or are known to come.

    Raises:
        UserError: there can never be GPUs enough.
    """
    nodes, growing = living_nodes(), growth()
    each = {"CPU": config.train.cpus_per_worker}
    gpus = sum(node.get("GPU", 0) for node in nodes)
    comes = growing is not None and growing.has("GPU")
    if config.engine.device == "auto" and not gpus and growing is not None and growing.types is None:
        logger.warning(
            "engine.device: auto takes the CPU: no node has a GPU now, and what the cluster can grow to is not known "
            "here; set it to cuda to have the run wait for them"
        )
    if config.engine.device == "cpu" or (config.engine.device == "auto" and not gpus and not comes):
        return each, _asked_for(config, each, nodes, growing)
    each["GPU"] = 1
    fewest, most = config.train.fewest_workers, _most(each, nodes, growing)
    if most < fewest:
        grows = f" and can grow to have room for {most:g}" if growing else ""
        raise UserError(
            f"train.num_workers: {fewest} workers need as many GPUs, the cluster has {gpus:g}{grows}: lower it, or set "
            "engine.device to cpu"
        )
    return each, _asked_for(config, each, nodes, growing)


def _asked_for(config: Config, each: Mapping[str, float], nodes: Nodes, growing: Growth | None) -> int:
    fewest, most = config.train.fewest_workers, config.train.most_workers
    return max(fewest, int(min(most, _most(each, nodes, growing)))) if growing else most  # lost nodes may come back


def living_nodes() -> Nodes:
    """The resources of each node of the cluster that Ray is connected to."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def prepare_environment() -> None:
    """What Ray reads from the environment of a process that starts runs."""
    # The controller looks after its workers this often; Ray's own default of 2 s is long beside a small run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    # `Scaling` looks after nodes that are about to be taken away; Ray's own watcher costs each run a process.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a run is told to others


def runs_at_a_time(config: Config, nodes: Nodes, growing: Growth | None = None) -> int | None:
    """How many runs of the configuration the nodes hold, given the CPUs and GPUs of each, and those that they can grow
    to; None: there is no knowing.

    Workers of a run may stand on several nodes, so it is the workers that are counted.
    """
    each = {"CPU": config.train.cpus_per_worker}
    has_gpus = any(node.get("GPU", 0) for node in nodes) or (growing is not None and growing.has("GPU"))
    if has_gpus and config.engine.device != "cpu":
        each["GPU"] = 1
    workers = _most(each, nodes, growing)
    if workers == float("inf"):
        return None
    # Where not even one has all the workers that it can have, one has fewer.
    return int(workers // config.train.most_workers) or int(workers >= config.train.fewest_workers)


@contextmanager
def ray_cluster(config: Config) -> Iterator[None]:
    """Connects to the cluster, or starts one here and ends it afterwards.

    Raises:
        UserError: it cannot be reached or started, or can never hold the workers.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    with connection() if named_cluster() else head_node(available_cpus()):
        _check(config, living_nodes(), "the cluster has", growth() if named_cluster() else None)
        with watched_head_node(patience_with_named() if named_cluster() else OWN):
            yield
