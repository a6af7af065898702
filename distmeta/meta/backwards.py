"""The states between steps from the last step back to the first one, of which few are kept at a time.

Steps are cut into segments of m, m - 1, m - 2, ... steps, the first of which is the longest. Only where each begins is
kept, and the states within a segment are computed again when it is gone back through: by then the segments behind it
are done with, so that there never are more than m + 1 states, the first one not counted, with m (m + 1) / 2 at least
the number of steps. It is the schedule of Griewank and Walther 2000 (https://doi.org/10.1145/347837.347846) for steps
that may be computed twice.
"""

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

State = TypeVar("State")


def backwards(first: State, steps: int, advance: Callable[[State, int], State]) -> Iterator[tuple[int, State, State]]:
    """Yields the number of each step, and the states before and after it, from the last one on.

    Args:
        first: the state before step 0.
        steps: how many.
        advance: makes the state after a step of that before; it is asked up to twice for a step.
    """
    begins = _begins(steps)
    kept: list[State] = []
    after = first
    for step in range(steps):
        if step in begins:
            kept.append(after)
        after = advance(after, step)
    for begin, end in zip(reversed(begins), reversed([*begins[1:], steps]), strict=True):
        for step in range(begin, end - 1):
            kept.append(advance(kept[-1], step))
        for step in reversed(range(begin, end)):
            before = kept.pop()
            yield step, before, after
            after = before
        del before


def most_states(steps: int) -> int:
    """How many states `backwards` holds at most, the first one not counted."""
    return _longest(steps) + 1


def _longest(steps: int) -> int:
    return math.ceil((math.sqrt(8 * steps + 1) - 1) / 2)


def _begins(steps: int) -> list[int]:
    """The first step of each segment."""
    begins, length = [0], _longest(steps)
    while begins[-1] + length < steps:
        begins.append(begins[-1] + length)
        length -= 1
    return begins
