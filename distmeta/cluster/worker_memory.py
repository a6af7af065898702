"""How much memory the nodes of a named cluster have for a worker, asked once a command."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cache

import ray

from distmeta.cluster.connect import prepare_environment
from distmeta.cluster.named_cluster import connection, named_cluster, reach
from distmeta.cluster.node_facts import NodeFacts, Question
from distmeta.cluster.probes import Node, living_nodes, probes
from distmeta.config import Config
from distmeta.errors import UserError

ANSWER = 30.0
"""Seconds that nodes have to say what memory they have."""

_facts: dict[str, list[tuple[Node, NodeFacts]]] = {}
"""What the nodes have said, by the cluster's address."""


def note_facts(answers: Mapping[Node, NodeFacts]) -> None:
    """Keeps what nodes of the named cluster have said, so that they are not asked again."""
    _facts[named_cluster() or ""] = list(answers.items())


def is_one_node() -> bool:
    """Whether the named cluster is this machine alone."""
    return len(_resources(named_cluster())) == 1


def has_gpus() -> bool:
    """Whether a node of the named cluster has GPUs."""
    return any(each.get("GPU", 0) for each in _resources(named_cluster()))


def worker_memory(config: Config) -> tuple[float, str] | None:
    """Bytes for a worker of the run, and where the number comes from; None: no node that could hold one has said it."""
    address = named_cluster() or ""
    if not _resources(address):
        return None
    if address not in _facts:
        prepare_environment()
        with nullcontext() if ray.is_initialized() else connection(), probes(living_nodes()) as asked:
            wants_gpus = config.engine.device != "cpu"
            answers = asked.facts(
                lambda node: Question(address=node.address, with_gpus=wants_gpus and node.gpus > 0), ANSWER
            )
        note_facts({node: each for node, each in answers.items() if isinstance(each, NodeFacts)})
    return share(config, _facts[address])


@cache
def _resources(address: str | None) -> tuple[dict[str, float], ...]:
    """Those of each node, asked once; none where the cluster cannot be used, which is told where it is to be."""
    try:
        return tuple(dict(node) for node in reach().nodes)
    except UserError:
        return ()


def share(config: Config, known: Sequence[tuple[Node, NodeFacts]]) -> tuple[float, str] | None:
    """The same, of nodes that have answered.

    On GPUs each worker has one, and the smallest counts. On CPUs Ray packs the workers onto few nodes; it does not say
    which, so those count that hold the most, and of them the one with the least for each.
    """
    train = config.train
    of_gpus = [size for _, facts in known for size in facts.gpu_memory]
    if config.engine.device != "cpu" and any(node.gpus for node, _ in known):
        return (min(of_gpus), "the smallest GPU of the cluster has") if of_gpus else None
    room = sorted(
        ((int(node.cpus // train.cpus_per_worker), facts.memory, node) for node, facts in known),
        key=lambda each: (-each[0], -each[1]),
    )
    left, shares = train.most_workers, []
    for workers, memory, node in room:
        if left > 0 and workers:
            held = min(workers, left)
            left -= held
            shares.append((memory / held, f"{node.name} has for each of {held} workers"))
    return min(shares) if shares and train.most_workers - left >= train.fewest_workers else None
