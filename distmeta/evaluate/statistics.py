"""Means over episodes with their confidence intervals, paired differences, and the scores of one episode."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one episode, from 0 to 1. Precision, recall and F1 are unweighted means over the classes (macro)."""

    accuracy: float
    precision: float
    recall: float
    f1: float


def mean_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Mean over episodes and half the width of its 95% confidence interval (see `mean_interval`)."""
    return mean_interval(values, 0.95)


def mean_interval(values: Sequence[float], level: float) -> tuple[float, float]:
    """Mean over episodes and half the width of its confidence interval of a level, such as 0.95.

    The half-width is t x s / sqrt(n): s the standard deviation with n - 1 in the denominator, t the (1 + level) / 2
    quantile of Student's distribution with n - 1 degrees of freedom. One episode says nothing of the spread: its
    half-width is infinite.
    """
    n = len(values)
    mean = float(np.mean(values))
    if n == 1:
        return mean, math.inf
    quantile = stats.t.ppf((1 + level) / 2, n - 1)
    return mean, float(quantile * np.std(values, ddof=1) / math.sqrt(n))


def paired_gain(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """Mean of `values` - `baseline` on the same episodes, and half the width of its 95% confidence interval (see
    `mean_ci95`).

    The differences vary less than the values do, since a hard episode is hard for both. Raises ValueError where the
    numbers of episodes differ.
    """
    return mean_ci95([value - other for value, other in zip(values, baseline, strict=True)])


def classification_scores(labels: ArrayLike, predictions: ArrayLike, n_way: int) -> Scores:
    """Scores of one episode with classes 0 to `n_way` - 1.

    For a class, precision is TP / (TP + FP), recall TP / (TP + FN) and F1 their harmonic mean, 2 TP / (2 TP + FP +
    FN); each is 0 where its denominator is. A table shows the mean of these scores over the episodes.
    """
    given, predicted = np.asarray(labels), np.asarray(predictions)
    is_right = given == predicted
    right = np.bincount(given[is_right], minlength=n_way)
    of_class, as_class = np.bincount(given, minlength=n_way), np.bincount(predicted, minlength=n_way)

    def mean_share(whole: np.ndarray, part: np.ndarray = right) -> float:
        return float(np.divide(part, whole, out=np.zeros(n_way), where=whole > 0).mean())

    f1 = mean_share(of_class + as_class, 2 * right)
    return Scores(float(is_right.mean()), mean_share(as_class), mean_share(of_class), f1)
