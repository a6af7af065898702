"""Which points of its space a sweep tries: each once, however small the space is."""

import itertools
from collections.abc import Iterator

from distmeta.errors import UserError
from distmeta.sweep.config import MOST_TRIALS, SweepConfig
from distmeta.sweep.space import Space, Values, identity

MOST_REPEATS = 200
"""Draws one after the other at points that have been drawn, before the rest of the space is listed."""


def first_values(space: Space, options: SweepConfig) -> list[Values]:
    """The values of all trials that are known from the start: all but those that Optuna proposes.

    Raises:
        UserError: the grid does not fit into `sweep.num_trials`.
    """
    default = space.default()
    if options.search == "optuna":
        return [default]
    if options.search == "random":
        first = [default] if options.num_trials > 1 else []
        draws = another_points(space, options.seed, {identity(point) for point in first})
        return [*first, *itertools.islice(draws, options.num_trials - len(first))]
    points = list(itertools.islice(space.grid(), MOST_TRIALS + 1))
    if len(points) > options.num_trials:
        raise UserError(
            f"sweep.num_trials: {options.num_trials} is fewer than the "
            f"{f'more than {MOST_TRIALS}' if len(points) > MOST_TRIALS else len(points)} points of the grid; raise it, "
            "or set sweep.search to random"
        )
    others = [point for point in points if point != default]
    return [default, *others] if len(others) < options.num_trials else points


def number_of_trials(space: Space, options: SweepConfig) -> int:
    """Trials that a sweep has: fewer than `sweep.num_trials` where its space has fewer points."""
    if options.search == "optuna":
        points = space.number_of_points(options.num_trials)
        return options.num_trials if points is None else points
    return len(first_values(space, options))


def fewer_trials(total: int, options: SweepConfig) -> list[str]:
    """A line where there are fewer trials than asked for."""
    if total >= options.num_trials:
        return []
    return [f"sweep.space: {total} points, so {total} trials instead of sweep.num_trials {options.num_trials}"]


def another_points(space: Space, seed: int, there: set[str]) -> Iterator[Values]:
    """Draws, none of them twice and none with an identity that is `there`, until the space has no other."""
    seen, index, repeats = set(there), 0, 0
    while repeats < MOST_REPEATS:
        values = space.random(seed, index)
        index += 1
        if identity(values) in seen:
            repeats += 1
            continue
        repeats = 0
        seen.add(identity(values))
        yield values
    # All that is left is improbable, or nothing.
    yield from (values for values in space.points() if identity(values) not in seen)
