"""Which network interface the workers of a run reach each other over: the one that holds each node's Ray address.

Left to themselves gloo takes the address that the host's own name stands for, which on Debian is a loopback
address, and NCCL the first interface that is up, which on a host with several cards may lead nowhere. Ray's own
address of a node is one that the other nodes have reached already.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from distmeta.cluster.node_facts import interface_of
from distmeta.train.events import note

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def environment() -> dict[str, str]:
    """What the user says about interfaces in the environment of this process."""
    return {name: os.environ[name] for name in (GLOO, NCCL) if os.environ.get(name)}


def use_interface_of(address: str, chosen: Mapping[str, str]) -> str:
    """Has gloo and NCCL of this process use the interface that holds the address, unless `chosen` or the environment of
    this process says otherwise. Returns what is used, in words."""
    for name, value in chosen.items():
        os.environ.setdefault(name, value)
    interface = interface_of(address)
    if interface:
        os.environ.setdefault(GLOO, interface)
        os.environ.setdefault(NCCL, f"={interface}")  # of a name without the sign NCCL takes all that begin so
    used = {os.environ.get(name, "").removeprefix("=") for name in (GLOO, NCCL)}
    if interface and used == {interface}:
        return f"{interface} on {address}"
    if not environment():
        return f"none on {address}, where no interface holds that address: set {GLOO} and {NCCL}"
    return f"{', '.join(f'{name}={value}' for name, value in environment().items())} on {address}, as it is set"


def _use_interface_of_node(chosen: Mapping[str, str]) -> str:
    return use_interface_of(ray.util.get_node_ip_address(), chosen)


@dataclass
class NodeNetwork(TorchConfig):
    """How Ray Train connects the workers; notes in `events` over what, where there are several nodes."""

    events: Path = field(kw_only=True)
    chosen: dict[str, str] = field(default_factory=environment)

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What does it."""
        return _NodeNetworkBackend


class _NodeNetworkBackend(_TorchBackend):
    _said = ""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Before the workers' process group is made; runs in Ray's controller."""
        if len({worker.metadata.node_ip for worker in worker_group.get_workers()}) > 1:
            used = worker_group.execute(_use_interface_of_node, backend_config.chosen)
            text = f"network interface between the nodes: {'; '.join(dict.fromkeys(used))}"
            if text != self._said:
                note(backend_config.events, 0, text)
            self._said = text
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Leaves the process group to the end of the processes, which comes next: of a lost or a stopped worker the
        others would wait half a minute for it."""
