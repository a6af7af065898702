"""Tasks from several data sets: number `index` is a task of one of them, the one of that number there."""

import math
from collections.abc import Sequence

import numpy as np

from distmeta.errors import UserError
from distmeta.tasks.config import Split
from distmeta.tasks.draw import TaskSource, generator
from distmeta.tasks.episode import Task


class Mixture:
    """Draws a data set, then a task of it.

    Args:
        sources: one a data set, all of the same split and shape of tasks.
        shares: of the tasks, one a data set, which need not sum to 1; None: the data sets come in turn, so that the
            mean over whole turns is one over data sets.
        seed: with the split and a task's index it decides the data set.

    Raises:
        UserError: no share is above 0.
    """

    def __init__(
        self,
        sources: Sequence[TaskSource],
        shares: Sequence[float] | None,
        *,
        split: Split,
        n_way: int | list[int] | str,
        k_shot: int | list[int],
        query_per_class: int,
        seed: int,
    ) -> None:
        self.sources = list(sources)
        self.split, self.seed = split, seed
        self.n_way, self.k_shot, self.query_per_class = n_way, k_shot, query_per_class
        self.shares = None
        if shares is not None:
            if not sum(shares) > 0:
                raise UserError(f"corpus.sources: no data set with a weight above 0 is in meta-{split}")
            self.shares = np.asarray(shares, float) / sum(shares)

    def draw(self, index: int) -> Task:
        """Task number `index`: the same whoever asks, and whenever.

        Raises:
            UserError: see `TaskSource.draw`.
        """
        return self.sources[self._number(index)].draw(index)

    def _number(self, index: int) -> int:
        """Which data set a task is of."""
        if self.shares is None:
            return index % len(self.sources)
        # Not the generator that the data set draws by: a task is the one that its data set alone would give.
        return int(generator(self.seed, self.split, index, "data set").choice(len(self.sources), p=self.shares))

    def whole_turns(self, episodes: int) -> int:
        """At least so many episodes, as many of each data set where they come in turn."""
        count = len(self.sources)
        return episodes if self.shares is not None else count * math.ceil(episodes / count)

    def check(self) -> None:
        """Draw a task of each data set. Raises UserError where one cannot be drawn."""
        for source in self.sources:
            source.check()


def shares_of(sizes: Sequence[tuple[bool, float, int]], power: float, smlmt_share: float | None) -> list[float]:
    """Return each data set's share of the tasks, which sum to 1 if any is above 0.

    Args:
        sizes: of each data set whether it is labelled, its weight, and its training texts.
        power: labelled data sets share by weight * texts ** power.
        smlmt_share: share of text without labels, where there is some beside labelled data sets.
    """
    found = [weight * float(texts) ** power if labelled else 0.0 for labelled, weight, texts in sizes]
    total = sum(found)
    if all(labelled for labelled, *_ in sizes):
        rest = 1.0
    else:
        rest = 1.0 - (smlmt_share or 0.0) if any(labelled for labelled, *_ in sizes) else 0.0
    return [
        (share * rest / total if total else 0.0) if labelled else 1.0 - rest
        for share, (labelled, *_) in zip(found, sizes, strict=True)
    ]
