"""Where units of work are done: in this process, or on a Ray cluster by Ray Data."""

import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from distmeta.store.folders import only_read

SECONDS_BETWEEN_LINES, MOST_SECONDS_BETWEEN_LINES = 5.0, 60.0

Unit = TypeVar("Unit")
Result = TypeVar("Result")


class Executor(Protocol):
    """Applies a function to units of work; which executor it is changes where that happens and never the result."""

    def map(self, function: Callable[[Unit], Result], units: Sequence[Unit], description: str) -> Iterator[Result]:
        """Yield `function(unit)` in the order of the units, as they finish. All three can be pickled."""
        ...


def map_groups(
    executor: Executor, function: Callable[[Unit], Result], groups: Sequence[Sequence[Unit]], description: str
) -> list[list[Result]]:
    """Return `function(unit)` of all units by group, from one pass over those of all groups.

    A group may be one small unit, as many data sets of a mixture are: one pass a group would leave the others idle.
    """
    results = iter(list(executor.map(function, list(chain.from_iterable(groups)), description)))
    return [list(islice(results, len(group))) for group in groups]


class LocalExecutor:
    """Does one unit after the other, in this process."""

    def map(self, function: Callable[[Unit], Result], units: Sequence[Unit], description: str) -> Iterator[Result]:
        """Yield `function(unit)` in order."""
        return with_progress(map(function, units), len(units), description)


class RayExecutor:
    """Does the units as a Ray Data pipeline, on the CPUs that the cluster has free. The caller has initialised Ray.

    Args:
        num_gpus: GPUs of a unit.
    """

    def __init__(self, num_gpus: float = 0) -> None:
        self._num_gpus = num_gpus

    def map(self, function: Callable[[Unit], Result], units: Sequence[Unit], description: str) -> Iterator[Result]:
        """Yield `function(unit)` in order."""
        return with_progress(_map_with_ray(function, units, self._num_gpus), len(units), description)


def _map_with_ray(function: Callable[[Unit], Result], units: Sequence[Unit], num_gpus: float) -> Iterator[Result]:
    import ray.data

    if not units:
        return

    def work(row: dict[str, bytes]) -> dict[str, bytes]:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Ray gives a unit one CPU
        only_read()
        return {"result": pickle.dumps(function(pickle.loads(row["unit"])))}

    # It tells of each step that it is over, and that its progress bars are off.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = [{"unit": pickle.dumps(unit)} for unit in units]
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(work, num_gpus=num_gpus or None)
    for row in results.iter_rows():
        yield pickle.loads(row["result"])


def with_progress(results: Iterable[Result], total: int, description: str, unit: str = "part") -> Iterator[Result]:
    """The same results, with a bar on a terminal. A log gets a line now and then, of what is long."""
    if sys.stderr.isatty():
        yield from tqdm(results, description, total, unit=unit, leave=False)
        return
    start = said = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        now = time.monotonic()
        # The longer it takes, the more time between two lines.
        if now - said > min(max(SECONDS_BETWEEN_LINES, (now - start) / 10), MOST_SECONDS_BETWEEN_LINES):
            said = now
            print(f"{description}: {done} of {total} {unit}s, {said - start:.0f} s", file=sys.stderr, flush=True)
