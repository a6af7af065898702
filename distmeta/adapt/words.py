"""What the words alone would do on the same examples: a network that is no better than TF-IDF is worth a warning."""

from dataclasses import replace

import numpy as np

from distmeta.adapt.base import Text
from distmeta.adapt.choose import Tried
from distmeta.adapt.folds import folds
from distmeta.evaluate.baselines import fit_and_predict
from distmeta.evaluate.tf_idf import TfIdf

MOST_EXAMPLES = 2000
"""Of more the comparison takes a part: its products are of each example with each."""


def warning(texts: list[Text], labels: np.ndarray, n_way: int, own: Tried, seed: int) -> str | None:
    """A line where TF-IDF predicts as many of the left-out examples as the network does; None where it is worse, or
    nothing could be left out."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(texts))[:MOST_EXAMPLES])
    found = _tried([texts[row] for row in chosen], labels[chosen], n_way, seed)
    if found is None:
        return None
    ours, theirs = own.right(labels), replace(found, rows=chosen[found.rows]).right(labels)
    both = ~np.isnan(ours - theirs)
    if not both.any() or ours[both].mean() > theirs[both].mean():
        return None
    return (
        f"TF-IDF, which knows no language, is right in {theirs[both].mean():.1%} of the same examples, where the "
        f"network is in {ours[both].mean():.1%}: the words alone may do, or the network does not suit these texts"
    )


def _tried(texts: list[Text], labels: np.ndarray, n_way: int, seed: int) -> Tried | None:
    rounds = folds(labels, seed)[:1]
    if not rounds:
        return None
    vectors = TfIdf([" ".join(each) for each in texts])
    rows, scores = [], []
    for fold in rounds[0]:
        products, query = vectors.products(fold.train, fold.test)
        predicted = fit_and_predict(products[None], labels[fold.train][None], query[None], n_way)[0]
        rows.append(fold.test)
        scores.append(np.eye(n_way)[predicted])
    return Tried("tf-idf", "logistic-regression", np.concatenate(rows), np.concatenate(scores), 0.0)
