"""What keeps a loaded network's sense of which texts are alike while tasks change it.

    S_ij    cosine of the features of texts i and j of a task, support and query alike
    term    weight * mean over i != j of (S_ij - S_ij of the starting network)^2

A task asks for what tells its classes apart; the rest of the network's geometry, which it says nothing about, would
wander off. It is relational knowledge distillation from the network as it was (Park et al. 2019,
https://arxiv.org/abs/1904.05068, with cosines for distances).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distmeta.compute.batch import TaskBatch, concatenate, texts_of_tasks


class KeptSimilarity:
    """The term of a task's loss.

    Args:
        network: computes features from parameters that it is given, without dropout; nobody else uses it meanwhile.
        start: the parameters whose similarities are kept.
        weight: of the term.
    """

    def __init__(self, network: Any, start: dict[str, Tensor], weight: float) -> None:
        self._network = network.eval()
        self._start = start
        self._weight = weight

    def loss(self, support: Tensor, query: Tensor, task: TaskBatch) -> Tensor:
        """The term, of several tasks side by side the sum of theirs.

        Args:
            support: features of the support set, (sequences, width), which the term is to be differentiated by.
            query: the same of the query set.
            task: what they are features of.
        """
        total = support.new_zeros(())
        for own, start in zip(_by_task(support, query, task), _by_task(*self._features(task), task), strict=True):
            difference = _cosines(own) - _cosines(start)
            total = total + difference.square().sum() / (len(own) * (len(own) - 1))  # on the diagonal there is none
        return self._weight * total

    @torch.no_grad()
    def _features(self, task: TaskBatch) -> tuple[Tensor, Tensor]:
        """Those of the starting network, of support and query set."""
        local = self._network.localized(self._start, [task.support, task.query])
        if not self._network.takes_both:
            support, query = (self._network.features(local.parameters, batch) for batch in local.batches)
            return support, query
        both = self._network.features(local.parameters, concatenate(*local.batches))
        support, query = both.split([len(task.support_labels), len(task.query_labels)])
        return support, query


def _by_task(support: Tensor, query: Tensor, task: TaskBatch) -> list[Tensor]:
    """All features of each task, (sequences, width)."""
    halves = (_parts(support, texts_of_tasks(task.support)), _parts(query, texts_of_tasks(task.query)))
    return [torch.cat(each) for each in zip(*halves, strict=True)]


def _parts(features: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    return features.split(list(sizes)) if sizes else [features]


def _cosines(features: Tensor) -> Tensor:
    unit = functional.normalize(features)
    return unit @ unit.t()
