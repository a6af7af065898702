"""A process of ours on each node of the cluster, which answers questions about it; none is waited for without end."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distmeta.cluster.link import Link, listen, measure
from distmeta.cluster.node_facts import NodeFacts, Question, node_facts
from distmeta.errors import one_line

CALL = 5.0
"""Seconds for what takes a process no time."""

CLOCK_READINGS = 5


@dataclass(frozen=True)
class Node:
    """A node of the cluster, as Ray knows it."""

    name: str
    """Its address and host, told apart from another one with the same."""
    address: str
    identity: str
    cpus: float
    gpus: float
    is_here: bool = False
    """Whether it is the one of this process."""


@dataclass(frozen=True)
class Silence:
    """Why a node did not answer."""

    reason: str


@dataclass(frozen=True)
class Clock:
    """How a node's clock stands."""

    ahead: float
    """Seconds that it is ahead of the one here."""
    uncertainty: float
    """Seconds by which that may be wrong: half the time that asking took."""


def living_nodes() -> list[Node]:
    """The nodes of the cluster that Ray is connected to, the one of this process first."""
    here = ray.get_runtime_context().get_node_id()
    known = sorted((each for each in ray.nodes() if each["Alive"]), key=lambda each: each["NodeID"] != here)
    addresses = [each["NodeManagerAddress"] for each in known]
    nodes = []
    for each in known:
        address, host, identity = each["NodeManagerAddress"], each["NodeManagerHostname"], each["NodeID"]
        name = address if host in ("", address) else f"{address} ({host})"
        if addresses.count(address) > 1:
            name += f" #{identity[:6]}"
        resources = each["Resources"]
        gpus = resources.get("GPU", 0.0)
        nodes.append(Node(name, address, identity, resources.get("CPU", 0.0), gpus, identity == here))
    return nodes


class _Probe:
    """Runs on a node."""

    def facts(self, question: Question) -> NodeFacts:
        return node_facts(question)

    def time(self) -> float:
        return time.time()

    def listen(self, address: str) -> int:
        return listen(address)

    def measure(self, address: str, port: int) -> Link:
        return measure(address, port)


class Probes:
    """The processes on the nodes. What they are asked is asked of all at once."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        make: Any = ray.remote(_Probe)
        self._actors: dict[Node, Any] = {
            node: make.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.identity, soft=False)
            ).remote()
            for node in nodes
        }

    def facts(self, question: Callable[[Node], Question], seconds: float) -> dict[Node, NodeFacts | Silence]:
        """What each node says of itself."""
        return self._ask({node: actor.facts.remote(question(node)) for node, actor in self._actors.items()}, seconds)

    def clocks(self, nodes: list[Node]) -> dict[Node, Clock | Silence]:
        """How the clocks of nodes that have answered before stand to the one here."""
        return {node: self._clock(node) for node in nodes}

    def links(self, nodes: list[Node], seconds: float) -> dict[tuple[Node, Node], Link | Silence]:
        """What is measured from each of the nodes to the next one, around a ring, all at the same time."""
        ring = list(zip(nodes, [*nodes[1:], nodes[0]], strict=True))
        ports = self._ask({node: self._actors[node].listen.remote(node.address) for node in nodes}, CALL)
        calls = {
            (node, following): self._actors[node].measure.remote(following.address, ports[following])
            for node, following in ring
            if not isinstance(ports[following], Silence)
        }
        deaf = {pair: ports[pair[1]] for pair in ring if pair not in calls}
        return deaf | self._ask(calls, seconds)

    def end(self) -> None:
        """Ends the processes."""
        for actor in self._actors.values():
            ray.kill(actor)

    def _clock(self, node: Node) -> Clock | Silence:
        readings = []
        for _ in range(CLOCK_READINGS):
            before = time.time()
            there = self._ask({node: self._actors[node].time.remote()}, CALL)[node]
            after = time.time()
            if isinstance(there, Silence):
                return there
            readings.append(Clock(there - (before + after) / 2, (after - before) / 2))
        return min(readings, key=lambda reading: reading.uncertainty)

    def _ask(self, calls: Mapping[Any, Any], seconds: float) -> dict[Any, Any]:
        """The answer to each call, or why there is none, after so many seconds at most."""
        done, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=seconds) if calls else ([], [])
        answers: dict[Any, Any] = {}
        for key, call in calls.items():
            if call not in done:
                answers[key] = Silence(f"no answer within {seconds:g} s")
                continue
            try:
                answers[key] = ray.get(call, timeout=CALL)
            except Exception as error:
                answers[key] = Silence(_reason(error))
        return answers


@contextmanager
def probes(nodes: list[Node]) -> Iterator[Probes]:
    """Processes on the nodes for the time of some questions."""
    made = Probes(nodes)
    try:
        yield made
    finally:
        made.end()


def _reason(error: Exception) -> str:
    """The last line of what went wrong there; before it Ray writes how it came to the process."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return one_line(lines[-1] if lines and isinstance(error, RayError) else (lines or [type(error).__name__])[0])
