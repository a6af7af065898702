"""Where units of work are done: in this process, or on a Ray cluster by Ray Data."""

import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5.0

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
        return _with_progress(map(function, units), len(units), description)


class RayExecutor:
    """Does the units as a Ray Data pipeline, on the CPUs that the cluster has free. The caller has initialised Ray."""

    def map(self, function: Callable[[Unit], Result], units: Sequence[Unit], description: str) -> Iterator[Result]:
        """Yield `function(unit)` in order."""
        return _with_progress(_map_with_ray(function, units), len(units), description)


def _map_with_ray(function: Callable[[Unit], Result], units: Sequence[Unit]) -> Iterator[Result]:
    import ray.data

    if not units:
        return

    def work(row: dict[str, bytes]) -> dict[str, bytes]:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Ray gives a unit one CPU
        return {"result": pickle.dumps(function(pickle.loads(row["unit"])))}

    # It tells of each step that it is over, and that its progress bars are off.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = [{"unit": pickle.dumps(unit)} for unit in units]
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(work)
    for row in results.iter_rows():
        yield pickle.loads(row["result"])


def _with_progress(results: Iterator[Result], total: int, description: str) -> Iterator[Result]:
    if sys.stderr.isatty():
        yield from tqdm(results, description, total, unit="part", leave=False)
        return
    # A log wants a sign of life of what is long, and nothing of what is over at once.
    start = said = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(f"{description}: {done} of {total} parts, {said - start:.0f} s", file=sys.stderr, flush=True)
