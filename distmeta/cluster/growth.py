"""What a cluster can grow to: the nodes that its autoscaler may start, as far as it can be known.

Ray tells no driver of it. Some hosted clusters report it to the head node; `ray up` leaves it in a file on the machine
of the head node, where jobs run, and which the command line of the autoscaler names. On Kubernetes the autoscaler is
in a container of its own: there it is known that the cluster grows, and not to what.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ANY = 10**9
"""Nodes where there is no limit."""


@dataclass(frozen=True)
class NodeType:
    """Nodes of one kind that an autoscaler starts."""

    resources: Mapping[str, float]
    """Of one of them."""
    most: int
    """Of them there are never more, those that are there included."""


@dataclass(frozen=True)
class Growth:
    """How far a cluster grows."""

    types: Sequence[NodeType] | None
    """None: it is not known."""
    most: int = ANY
    """Nodes of all kinds together, without the head node."""

    def has(self, resource: str) -> bool:
        """Whether it is known that a node with such a resource can come."""
        return any(each.resources.get(resource, 0) > 0 and each.most > 0 for each in self.types or ())

    def workers(self, of_node: Callable[[Mapping[str, float]], int]) -> int | None:
        """The most workers on all nodes that can be started, given how many a node has. None: it is not known."""
        if self.types is None:
            return None
        left, workers = self.most, 0
        for each in sorted(self.types, key=lambda each: of_node(each.resources), reverse=True):
            workers += of_node(each.resources) * min(each.most, left)
            left -= min(each.most, left)
        return workers


def growth_of(
    address: str, stored: Callable[[bytes, bytes], bytes | None], proc: Path = Path("/proc")
) -> Growth | None:
    """How far the cluster of the head node at `address` grows; None: it does not.

    Args:
        address: HOST:PORT.
        stored: gives what the head node has stored under a namespace and a key.
        proc: where the processes of this machine are seen.
    """
    if reported := stored(b"__autoscaler", b"__autoscaler_cluster_config"):
        return _reported(reported)
    for arguments in _monitors(address, proc):
        files = [each.partition("=")[2] for each in arguments if each.startswith("--autoscaling-config=")]
        if not files:
            return None
        try:
            return _configured(yaml.safe_load(Path(files[0]).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
            return Growth(None)
    if stored(b"__autoscaler", b"__autoscaler_v2_enabled") == b"1":
        return Growth(None)
    status = json.loads(stored(b"", b"__autoscaling_status") or b"{}")
    # Without a configuration it only mirrors the nodes that are there, by a name of each.
    kinds = status.get("autoscaler_report", {}).get("active_nodes", {})
    return Growth(None) if any(not kind.startswith("node_") for kind in kinds) else None


def growth() -> Growth | None:
    """The same of the cluster that Ray is connected to."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    address = ray.get_runtime_context().gcs_address
    return growth_of(address, lambda namespace, key: _internal_kv_get(key, namespace=namespace or None))


def refused_requests() -> list[int]:
    """How many workers were asked for in requests that the autoscaler says it can never fulfil, and of which it then
    fulfils no part. Of the older autoscaler there are none: it does what it can."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # in C
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]  # generated

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=5))
    refused = reply.autoscaling_state.infeasible_cluster_resource_constraints
    return [sum(request.count for request in each.resource_requests) for each in refused]


def whole_workers(free: Mapping[str, float], each: Mapping[str, float], own: int = 0) -> int:
    """Workers that a node holds, given what is free on it, what each takes, and how many of them hold theirs already.

    Shares of a CPU add up to a little less than they are, which is made good.
    """
    return own + min(int(free.get(name, 0.0) / amount + 1e-6) for name, amount in each.items() if amount)


def _reported(config: bytes) -> Growth:
    from ray.core.generated import autoscaler_pb2

    groups = autoscaler_pb2.ClusterConfig.FromString(config).node_group_configs  # type: ignore[attr-defined]
    return Growth(
        [NodeType(dict(group.resources), ANY if group.max_count < 0 else group.max_count) for group in groups]
    )


def _configured(config: dict[str, Any]) -> Growth:
    most = int(config.get("max_workers", 0))
    kinds = [kind for name, kind in config["available_node_types"].items() if name != config.get("head_node_type")]
    return Growth([NodeType(kind.get("resources", {}), int(kind.get("max_workers", most))) for kind in kinds], most)


def _monitors(address: str, proc: Path) -> list[list[str]]:
    """The command lines of the autoscalers of the cluster that run on this machine."""
    found = []
    for file in proc.glob("[0-9]*/cmdline"):
        try:
            arguments = file.read_text(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile, or is another user's
            continue
        is_monitor = any(each.endswith("/monitor.py") and "/autoscaler/" in each for each in arguments)
        if is_monitor and f"--gcs-address={address}" in arguments:
            found.append(arguments)
    return found
