"""What few-shot classification reaches without an inner loop: on a network's features, and on the words alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from threadpoolctl import ThreadpoolController

Features = NDArray[np.floating]
Labels = NDArray[np.integer]

# The inverse strength of the L2 penalty. From 1 to 100 the accuracy moves by less than a point on the sets that were
# tried.
C = 10.0


def nearest_prototype(support: Features, support_labels: Labels, query: Features, n_way: int) -> Labels:
    """Predicts for each query example the class whose prototype is nearest by cosine.

    A prototype is the mean of the class's support features, each scaled to length 1 first, and is scaled to length 1
    itself (Snell et al. 2017, "Prototypical Networks for Few-shot Learning", with cosine for Euclidean distance: on
    unscaled features the latter lost 8 points on a sentence encoder). Shapes (support, width), (support,), (query,
    width); returns (query,).
    """
    support, query = normalize(support), normalize(query)
    prototypes = normalize(np.stack([support[support_labels == label].mean(axis=0) for label in range(n_way)]))
    return np.argmax(query @ prototypes.T, axis=1)


def logistic_regression(support: Features, support_labels: Labels, query: Features) -> Labels:
    """Predicts the query examples by a logistic regression on frozen features.

    Features are scaled to length 1, centred on the support mean and scaled to length 1 again. On a sentence encoder
    that is as good as without the centring and better than standardising by up to 4 points (1-shot); on a network
    whose features all point nearly one way, as an untrained one's do, the centring is worth 3 points (5-shot). Shapes
    (support, width), (support,), (query, width); returns (query,).
    """
    support, query = normalize(support), normalize(query)
    centre = support.mean(axis=0)
    return _fit_and_predict(normalize(support - centre), support_labels, normalize(query - centre))


def tf_idf_logistic_regression(
    support_texts: Sequence[str], support_labels: Labels, query_texts: Sequence[str]
) -> Labels:
    """Predicts the query texts by a logistic regression on TF-IDF, fitted on the support texts alone; returns (query,).

    The terms are sequences of 1 to 4 characters within words, which need no word boundaries and forgive endings.
    5-way 1-shot and 5-shot, in %: 74.7 / 94.3 on English intents (OOS), where whole words reach 67.9 / 91.2; 28.0 /
    35.9 on Chinese headlines (TNEWS), where whole words reach 20.2 / 20.7, which is chance. Fitting on the query
    texts too changes them by less than a point.
    """
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
    support = vectorizer.fit_transform(support_texts)
    return _fit_and_predict(support, support_labels, vectorizer.transform(query_texts))


def _fit_and_predict(support: Features, support_labels: Labels, query: Features) -> Labels:
    with _one_blas_thread():
        return LogisticRegression(C=C, max_iter=1000).fit(support, support_labels).predict(query)


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """These fits are far too small for several threads: on a busy machine those made them 20 to 80 times as slow."""
    with _threadpools().limit(limits=1, user_api="blas"):
        yield


@cache
def _threadpools() -> ThreadpoolController:
    return ThreadpoolController()
