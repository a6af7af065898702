"""Cross-validation on the examples themselves: parts that are left out in turn, each class with its share in all."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
WANTED = 200
"""Predictions on which a comparison should rest: few examples are divided anew until there are so many, or
`MOST_ROUNDS` times."""
MOST_ROUNDS = 10

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Numbers of the examples that are trained on, and of those that are predicted."""

    train: Rows
    test: Rows


def folds(labels: NDArray[np.integer], seed: int = 0, *, least: int = 2) -> list[list[Fold]]:
    """Rounds of folds; in a round each example of a class that has two is predicted once. A class with a single example
    is trained on in all of them. Empty where there is nothing to leave out.

    Args:
        labels: of the examples.
        seed: of how they are divided.
        least: 1 where a class has something to go by without any of its examples.
    """
    counts = np.bincount(labels)
    divided = np.flatnonzero(counts >= least)
    number = int(min(FOLDS, counts[divided].max() if least > 1 else len(labels))) if len(divided) else 0
    if number < 2:
        return []
    random = np.random.default_rng(seed)
    predicted = int(counts[divided].sum())
    rounds = min(MOST_ROUNDS, -(-WANTED // predicted))
    return [list(_round(labels, divided, number, random)) for _ in range(rounds)]


def _round(labels: NDArray[np.integer], divided: Rows, number: int, random: np.random.Generator) -> Iterator[Fold]:
    place = np.full(len(labels), -1)
    start = 0
    for label in divided:
        rows = random.permutation(np.flatnonzero(labels == label))
        # Each goes on where the last one ended, so that folds are of one size.
        place[rows] = (start + np.arange(len(rows))) % number
        start += len(rows)
    for fold in range(number):
        test = np.flatnonzero(place == fold)
        if len(test):
            yield Fold(np.flatnonzero(place != fold), test)
