"""Preparing a corpus on nodes that share nothing but its address."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distmeta.corpus.executor import Executor, RayExecutor, Result, Unit
from distmeta.corpus.parts import Part
from distmeta.store.folders import address_of, attach, put


class Elsewhere:
    """An executor whose units are done on several nodes: what a unit reads of the work of others comes from the address
    of the corpus, and each part that it makes goes there at once, from the node that made it.

    Args:
        executor: that distributes the units.
        address: of the corpus.
        directory: its local folder, which has the same path on each node.
    """

    def __init__(self, executor: Executor, address: str, directory: Path) -> None:
        self._executor, self._address, self._directory = executor, address, directory

    def map(self, function: Callable[[Unit], Result], units: Sequence[Unit], description: str) -> Iterator[Result]:
        """Yield `function(unit)` in the order of the units."""
        put(self._directory / "work")  # what this process has made itself
        there: Callable[[Unit], Result] = partial(_there, function, self._address, self._directory)
        return self._executor.map(there, units, description)


def spread(executor: Executor, directory: Path) -> Executor:
    """The executor for a folder: `Elsewhere` where that stands for an address and Ray has several nodes."""
    address = address_of(directory)
    if address is None or not isinstance(executor, RayExecutor) or len(_nodes()) < 2:
        return executor
    return Elsewhere(executor, address, directory)


def clean(executor: Executor, directory: Path) -> None:
    """Removes what the nodes have of it on their disks, this one's excepted."""
    if not isinstance(executor, Elsewhere):
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    remove = ray.remote(num_cpus=0)(lambda: shutil.rmtree(directory, ignore_errors=True))
    ray.get(
        [
            remove.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote()
            for node in _nodes()
            if node != here
        ]
    )


def _nodes() -> list[str]:
    import ray

    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def _there(function: Callable[[Any], Any], address: str, directory: Path, unit: Any) -> Any:
    attach(address, directory)
    result = function(unit)
    if isinstance(result, Part):
        put(result.folder)
    return result
