"""Probabilities that mean what they say: scores divided by a temperature that suits texts not seen in fitting."""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
Labels = NDArray[np.integer]

TEMPERATURES = np.geomspace(0.02, 50, 200)
SPREAD = 0.5
BINS = 10


def probabilities(scores: Scores, temperature: float = 1.0) -> Scores:
    """Softmax of each row of scores divided by the temperature."""
    scaled = np.asarray(scores, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def fit_temperature(scores: Scores, labels: Labels, examples: int | None = None) -> float:
    """The temperature at which the labels are likeliest (Guo et al. 2017, https://arxiv.org/abs/1706.04599), where its
    logarithm is supposed beforehand to be 0 give or take SPREAD, so that few predictions move it little.

    Args:
        scores: of predictions by fits that did not have them.
        labels: what they are of.
        examples: how many examples these are, where some are predicted several times.
    """
    weight = (examples or len(labels)) / len(labels)
    rows = np.arange(len(labels))
    losses = []
    for temperature in TEMPERATURES:
        own = np.log(np.maximum(probabilities(scores, temperature)[rows, labels], 1e-12))
        losses.append(np.log(temperature) ** 2 / (2 * SPREAD**2) - weight * own.sum())
    return float(TEMPERATURES[int(np.argmin(losses))])


def calibration_error(found: Scores, labels: Labels) -> float:
    """Expected calibration error (0 to 1): of ten bins of predictions of about as many each, by their probability, the
    mean distance of that from the share that is right."""
    confidence, right = found.max(1), found.argmax(1) == labels
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    return float(sum(len(part) * abs(confidence[part].mean() - right[part].mean()) for part in parts) / len(order))
