"""A linear head on features of length 1: what prototypes and a logistic regression are."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from distmeta.evaluate.baselines import C
from distmeta.evaluate.logistic import fit

TEMPERATURE = 0.1
"""Cosines to prototypes are divided by it, which changes no prediction."""
MOST_IN_THE_SPAN = 1000
"""Examples up to which a regression is fitted in their span; with more of them than features that takes longer."""


@dataclass(frozen=True, slots=True)
class Head:
    """Scores of rows that are scaled to length 1, moved by a centre and scaled to length 1 again."""

    centre: Tensor
    """(width,)."""
    weight: Tensor
    """(n_way, width)."""
    bias: Tensor
    """(n_way,)."""

    @classmethod
    def of_regression(cls, features: Tensor, labels: Tensor, n_way: int) -> Self:
        """The logistic regression on a support set's features, (examples, width), as
        `distmeta.evaluate.baselines.logistic_regression` has it; the centre is their mean."""
        rows = functional.normalize(features)
        centre = rows.mean(0)
        rows = functional.normalize(rows - centre)
        if len(rows) > MOST_IN_THE_SPAN:
            return cls(centre, *_by_features(rows, labels, n_way))
        a, b = fit((rows @ rows.t())[None], labels[None], n_way, C)
        return cls(centre, (a[0].t() @ rows), b[0].clone())

    @classmethod
    def of_prototypes(cls, features: Tensor, labels: Tensor, n_way: int) -> Self:
        """Cosines to the prototypes of `distmeta.evaluate.baselines.nearest_prototype`; nothing is centred."""
        members = functional.one_hot(labels, n_way).to(features.dtype)
        centers = functional.normalize(members.t() @ functional.normalize(features))
        return cls(torch.zeros_like(centers[0]), centers / TEMPERATURE, torch.zeros_like(centers[:, 0]))

    def scores(self, features: Tensor) -> Tensor:
        """Scores of each text for each class: (texts, n_way)."""
        rows = functional.normalize(functional.normalize(features) - self.centre)
        return functional.linear(rows, self.weight, self.bias)


def _by_features(rows: Tensor, labels: Tensor, n_way: int) -> tuple[Tensor, Tensor]:
    """Weights (n_way, width) and biases (n_way,) of the same regression, by scikit-learn."""
    fitted = LogisticRegression(C=C, max_iter=1000).fit(rows.cpu().numpy(), labels.cpu().numpy())
    weight, bias = fitted.coef_, fitted.intercept_
    if n_way == 2:  # which scikit-learn has as one row, with half of the penalty
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    return torch.from_numpy(weight).to(rows), torch.from_numpy(bias).to(rows)
