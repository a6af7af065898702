"""The nodes of the cluster that Ray is connected to, as they are now."""

import socket
from typing import Any

import ray
from ray._private.state import state

ANSWER = 1.0
"""Seconds in which a node has to take a connection."""


def usable_nodes() -> list[dict[str, Any]]:
    """Those that work can be given to: each alive, answering, and not about to be taken away.

    Ray itself misses a node that has died without a word only after a quarter of a minute.
    """
    leaving = state.get_draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving and _answers(node)]


def lost_nodes() -> dict[str, str]:
    """The addresses of nodes that were there once and are gone, by identifier."""
    return {
        node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if not (node["Alive"] and _answers(node))
    }


def _answers(node: dict[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=ANSWER).close()
    except OSError:
        return False
    return True
