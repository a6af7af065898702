"""Groups of tasks computed at the same time on a CPU.

Threads within an operation do little for the small matrices of a task; a thread a group keeps each core busy.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(compute: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """What `compute` makes of each item, in their order. Each thread has its share of the threads that torch has."""
    if threads == 1:
        yield from map(compute, items)
        return
    of_torch = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, "tasks", torch.set_num_threads, (of_torch // threads,)) as pool:
            yield from pool.map(compute, items)
    finally:
        torch.set_num_threads(of_torch)
