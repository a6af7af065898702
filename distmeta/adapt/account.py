"""What cross-validation tells of a classifier beside its accuracy: for the page of `distmeta report`."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmeta.adapt.base import Text
from distmeta.adapt.calibration import BINS, calibration_error, probabilities
from distmeta.adapt.choose import Choice, Trials, Tried
from distmeta.adapt.methods import FROZEN
from distmeta.evaluate.statistics import classification_scores

HARDEST = 20
SHOWN = 200
"""Characters of a text."""
MOST_FITTED = 500
"""Examples up to which the growth with their number is that of the method that was taken; of more, by prototypes."""


def account(
    trials: Trials, choice: Choice, temperature: float, texts: Sequence[Text], labels: Sequence[str]
) -> dict[str, Any]:
    """The content of `adaptation.json`.

    `classes`, `examples` of each, `taken` and `why`; `tried`, a row a method. Where examples could be left out also
    `accuracy`, macro `precision`, `recall` and `f1`, `confusion` (row: true class, column: predicted; each example once
    in all), `hardest` examples, `calibration` before and after (error, and bins of probability and share right), and
    `growth`: accuracy by examples a class. Shares are fractions.
    """
    classes = sorted(set(labels))
    own = trials.support.labels
    found: dict[str, Any] = {
        "classes": classes,
        "examples": np.bincount(own, minlength=len(classes)).tolist(),
        "taken": f"{choice.network} {choice.method}",
        "why": choice.why,
        "tried": [_row(each, own) for each in choice.tried],
    }
    if choice.own is None:
        return found
    scores, rows = choice.own.scores, choice.own.rows
    predicted = scores.argmax(1)
    counts = np.bincount(rows, minlength=len(own))[rows]
    confusion = np.zeros((len(classes), len(classes)))
    np.add.at(confusion, (own[rows], predicted), 1 / counts)
    found |= _row(choice.own, own)
    metrics = classification_scores(own[rows], predicted, len(classes))
    found |= {"precision": metrics.precision, "recall": metrics.recall, "f1": metrics.f1}
    found["confusion"] = confusion.round(3).tolist()
    found["hardest"] = list(_hardest(probabilities(scores, temperature), rows, own, texts, classes))
    found["calibration"] = {
        name: _calibration(probabilities(scores, value), own[rows])
        for name, value in (("before", 1.0), ("after", temperature))
    }
    found["growth"] = list(_growth(trials, choice))
    return found


def _row(tried: Tried, labels: NDArray[np.int64]) -> dict[str, Any]:
    right = tried.right(labels)
    right = right[~np.isnan(right)]
    half = 1.96 * right.std(ddof=1) / np.sqrt(len(right)) if len(right) > 1 else None
    interval = {} if half is None else {"accuracy_ci95": float(half)}
    name = f"{tried.network} {tried.method}"
    return {"name": name, "accuracy": float(right.mean()), **interval, "seconds": tried.seconds}


def _hardest(
    found: NDArray[np.floating],
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    texts: Sequence[Text],
    classes: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """The examples whose own class was least likely when they were left out."""
    mean = np.zeros((len(labels), found.shape[1]))
    np.add.at(mean, rows, found)
    predicted = np.unique(rows)
    mean[predicted] /= np.bincount(rows, minlength=len(labels))[predicted, None]
    own = mean[predicted, labels[predicted]]
    for place in np.argsort(own, kind="stable")[:HARDEST]:
        row = int(predicted[place])
        yield {
            "text": " / ".join(texts[row])[:SHOWN],
            "label": classes[labels[row]],
            "predicted": classes[int(mean[row].argmax())],
            "probability": float(own[place]),
        }


def _calibration(found: NDArray[np.floating], labels: NDArray[np.int64]) -> dict[str, Any]:
    confidence, right = found.max(1), found.argmax(1) == labels
    order = np.argsort(confidence, kind="stable")
    bins = [
        [float(confidence[part].mean()), float(right[part].mean())] for part in np.array_split(order, BINS) if len(part)
    ]
    return {"error": calibration_error(found, labels), "bins": bins}


def _growth(trials: Trials, choice: Choice) -> Iterator[dict[str, Any]]:
    """Accuracy with 1, 2, 4 and so on of the examples of each class, and with all that are not left out."""
    labels = trials.support.labels
    method = choice.method if choice.method in FROZEN and len(labels) <= MOST_FITTED else FROZEN[0]
    random = np.random.default_rng(0)
    folds = [fold for each in trials.rounds for fold in each]
    if len(labels) > MOST_FITTED:
        folds = trials.rounds[0]
    most = max(int(np.bincount(labels[fold.train]).max()) for fold in folds)
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size < most]
    for size in [*sizes, most]:
        right = []
        for fold in folds:
            order = random.permutation(fold.train)
            chosen = np.concatenate([order[labels[order] == label][:size] for label in np.unique(labels[order])])
            fitted: Any = trials.fit(choice.network, method, chosen)
            scores = fitted.of_features(trials.features(choice.network)[fold.test])
            right += (scores.argmax(1) == labels[fold.test]).tolist()
        yield {"examples": size, "accuracy": float(np.mean(right)), "method": method}
