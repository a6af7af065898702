"""What is found of a cluster: a line each, from what its nodes say. Nothing here asks anybody."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distmeta.cluster.link import Link
from distmeta.cluster.node_facts import TEMPORARY, NodeFacts
from distmeta.cluster.places import Place
from distmeta.cluster.probes import Clock, Node, Silence

Level = Literal["ok", "warning", "fault"]

MUST_BE_EQUAL = ("python", "distmeta", "ray", "torch", "deepspeed", "transformers")
"""Of the others a difference may do no harm."""

CLOCK = 1.0
"""Seconds that clocks may differ by without a word."""

LATENCY, BANDWIDTH = 2e-3, 1e9 / 8
"""Seconds of a round trip and bytes a second beyond which workers on several nodes wait for each other."""

RECORDS = {"online": "records online", "offline": "records offline", "disabled": "is switched off"}

MOST_NAMED = 4
"""Nodes that a line names, of those of which it says the same."""

Answers = Mapping[Node, NodeFacts | Silence]


@dataclass(frozen=True)
class Finding:
    """A line: what it is about, what was found, and what to do."""

    level: Level
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.about}: {self.text}"


def facts_of(answers: Answers) -> dict[Node, NodeFacts]:
    """Of those that have answered."""
    return {node: answer for node, answer in answers.items() if isinstance(answer, NodeFacts)}


def answer_findings(answers: Answers) -> Iterator[Finding]:
    """Which nodes say nothing."""
    for node, answer in answers.items():
        if not isinstance(answer, Silence):
            continue
        if "ModuleNotFoundError" in answer.reason or "ImportError" in answer.reason:
            remedy = "install distmeta and its packages there, or submit by `ray job submit --working-dir .`"
            yield Finding("fault", node.name, f"distmeta cannot be imported there ({answer.reason}): {remedy}")
        else:
            remedy = "see whether it is well and can be reached, or take it out of the cluster"
            yield Finding("fault", node.name, f"says nothing ({answer.reason}): {remedy}")


def version_findings(answers: Answers) -> Iterator[Finding]:
    """Whether all nodes have the same software."""
    facts = facts_of(answers)
    names = dict.fromkeys(name for each in facts.values() for name in each.versions)
    all_equal = True
    for name in names:
        if name == "CUDA":  # nodes without a GPU may have a torch without it
            found = {node: each.versions[name] for node, each in facts.items() if node.gpus}
        else:
            found = {node: _comparable(name, each.versions.get(name, "none")) for node, each in facts.items()}
        if len(set(found.values())) < 2:
            continue
        all_equal = False
        level: Level = "fault" if name in (*MUST_BE_EQUAL, "CUDA") else "warning"
        remedy = "install the same everywhere"
        if name == "distmeta":
            remedy = "install the same everywhere, or submit by `ray job submit --working-dir .`"
        yield Finding(level, name, f"{_by_value(found)}: {remedy}")
    if all_equal and facts:
        versions = next(iter(facts.values())).versions
        told = ", ".join(f"{name} {versions[name]}" for name in MUST_BE_EQUAL if name in versions)
        where = f"the same on {len(facts)} nodes" if len(facts) > 1 else "on this machine"
        yield Finding("ok", "versions", f"{told}, and {len(names) - len(MUST_BE_EQUAL)} others: {where}")


def place_findings(
    answers: Answers, places: Sequence[Place], back: Mapping[tuple[str, Node], str]
) -> Iterator[Finding]:
    """Whether all nodes read and write the run's storage; `back` says how what they wrote is seen from here."""
    facts = facts_of(answers)
    for place in places:
        if place.fault:
            remedy = "give a place that can be, or the right to"
            yield Finding("fault", place.key, f"{place.told} cannot be written from here ({place.fault}): {remedy}")
            continue
        faults: dict[str, list[Node]] = defaultdict(list)
        for node, each in facts.items():
            if reason := each.unseen.get(place.key) or back.get((place.key, node)):
                faults[reason].append(node)
        for reason, nodes in faults.items():
            remedy = "give what all nodes see under that name, or an address such as s3://bucket/folder"
            yield Finding("fault", place.key, f"{place.told} on {_names(nodes)}: {reason}: {remedy}")
        if not faults and facts:
            does = "read and written by" if place.marker else "there for"
            who = f"{len(facts)} nodes" if len(facts) > 1 else "this machine"
            yield Finding("ok", place.key, f"{place.told} is {does} {who}")


def accelerator_findings(answers: Answers) -> Iterator[Finding]:
    """What DeepSpeed works on, beside the GPUs that Ray counts."""
    facts = facts_of(answers)
    told = {}
    for node, each in facts.items():
        told[node] = each.accelerator + (f" of {min(each.gpu_memory) / 2**30:.0f} GiB" if each.gpu_memory else "")
        if each.accelerator.startswith("nothing"):
            remedy = "install the packages again in their versions"
            yield Finding("fault", "accelerator", f"DeepSpeed on {node.name} finds {each.accelerator}: {remedy}")
        elif len(each.gpu_memory) < node.gpus:
            yield Finding(
                "fault",
                "accelerator",
                f"Ray counts {node.gpus:g} GPUs on {node.name}, torch sees {len(each.gpu_memory)} (DeepSpeed: "
                f"{each.accelerator}): install torch for the CUDA of its driver, and give the container its GPUs",
            )
    if told:
        yield Finding("ok", "accelerator", f"DeepSpeed sees {_by_value(told)}")


def network_findings(answers: Answers) -> Iterator[Finding]:
    """Over which interface workers connect."""
    facts = facts_of(answers)
    for node, each in facts.items():
        if not each.interface:
            remedy = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME there to the one that leads to the other nodes"
            yield Finding("warning", "network", f"no interface of {node.name} holds that address: {remedy}")
    told = {node: each.interface for node, each in facts.items() if each.interface}
    if told:
        yield Finding("ok", "network", f"Ray's addresses are on {_by_value(told)}")
    looped = [node for node, each in facts.items() if each.own_address.startswith("127.") or each.own_address == "::1"]
    if looped:
        text = f"{_names(looped)}: the own name stands for a loopback address there, so workers go by the interface"
        yield Finding("ok", "network", text)


def link_findings(links: Mapping[tuple[Node, Node], Link | Silence]) -> Iterator[Finding]:
    """How fast the nodes reach each other."""
    measured = {pair: link for pair, link in links.items() if isinstance(link, Link)}
    for (source, target), link in links.items():
        way = f"from {source.name} to {target.name}"
        if isinstance(link, Silence):
            remedy = "open all TCP ports between the nodes, as gloo and NCCL take any"
            yield Finding("fault", "network", f"no connection {way} ({link.reason}): {remedy}")
        elif link.latency > LATENCY or link.bandwidth < BANDWIDTH:
            remedy = "put the nodes nearer to each other, or let fewer of them work on a run"
            yield Finding("warning", "network", f"slow {way}, {_speed(link)}: {remedy}")
    if measured:
        slowest = Link(max(m.latency for m in measured.values()), min(m.bandwidth for m in measured.values()))
        yield Finding("ok", "network", f"{_speed(slowest)} at the slowest of {len(measured)} ways around the nodes")


def clock_findings(clocks: Mapping[Node, Clock | Silence]) -> Iterator[Finding]:
    """How far the clocks are apart."""
    known = {node: clock for node, clock in clocks.items() if isinstance(clock, Clock)}
    for node, clock in known.items():
        if abs(clock.ahead) - clock.uncertainty > CLOCK:
            way = "ahead of" if clock.ahead > 0 else "behind"
            yield Finding(
                "warning",
                "clock",
                f"{node.name} is {abs(clock.ahead):.1f} s (± {clock.uncertainty:.3f} s) {way} this node: let NTP set "
                "it; storage and W&B refuse what is signed by a wrong clock",
            )
    if known:
        furthest = max(known.values(), key=lambda clock: abs(clock.ahead))
        text = f"at most {abs(furthest.ahead):.4f} s (± {furthest.uncertainty:.4f} s) from this node's"
        yield Finding("ok", "clock", text)


def disk_findings(answers: Answers, needed: Mapping[str, float]) -> Iterator[Finding]:
    """Whether there is room for what a run writes; `needed` are bytes by setting."""
    for key, size in needed.items():
        free = {node: each.free[key] for node, each in facts_of(answers).items() if key in each.free}
        short = [node for node, left in free.items() if left < size]
        for node in short:
            remedy = "set TMPDIR to a larger disk there" if key == TEMPORARY else "make room, or give another place"
            has = f"{_gib(free[node])} are left on {node.name}, the run writes {_gib(size)}"
            yield Finding("fault", key, f"{has}: {remedy}")
        if free and not short:
            yield Finding("ok", key, f"{_gib(min(free.values()))} are left, the run writes {_gib(size)}")


def wandb_findings(answers: Answers) -> Iterator[Finding]:
    """How W&B would record."""
    facts = {node: each for node, each in facts_of(answers).items() if each.wandb}
    faults = {node: each.wandb_fault for node, each in facts.items() if each.wandb_fault}
    if faults:
        remedy = "without it the run is recorded offline, for `wandb sync` later"
        yield Finding("warning", "W&B", f"{_by_value(faults)}: {remedy}")
    modes = {node: each.wandb for node, each in facts.items()}
    if len(set(modes.values())) > 1:
        yield Finding("warning", "W&B", f"{_by_value(modes)}: give all nodes the same WANDB_API_KEY or login")
    elif modes and not faults:
        mode = next(iter(modes.values()))
        hint = "; WANDB_API_KEY in the environment of the nodes makes it online" if mode == "offline" else ""
        yield Finding("ok", "W&B", f"{RECORDS[mode]}{hint}")


def _comparable(name: str, version: str) -> str:
    """What has to be equal of a version: not for which processor it was built, nor the patch level of Python."""
    if name == "python":
        return ".".join(version.split(".")[:2])
    return version.partition("+")[0]


def _by_value(found: Mapping[Node, str]) -> str:
    """`X on 3 nodes, Y on NAME`: the most frequent first, which is not named node by node."""
    nodes: dict[str, list[Node]] = defaultdict(list)
    for node, value in found.items():
        nodes[value].append(node)
    ordered = sorted(nodes.items(), key=lambda each: -len(each[1]))
    if len(ordered) == 1 and len(found) > 1:
        return f"{ordered[0][0]} on all {len(found)} nodes"
    first = len(ordered[0][1])
    return ", ".join(
        f"{value} on {f'{first} nodes' if len(its) == first > 2 else _names(its)}" for value, its in ordered
    )


def _names(nodes: Sequence[Node]) -> str:
    names = [node.name for node in nodes]
    return " and ".join(names[:MOST_NAMED]) + (
        f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    )


def _speed(link: Link) -> str:
    return f"{1e3 * link.latency:.2f} ms a round trip, {8e-9 * link.bandwidth:.2f} Gbit/s over one connection"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
