"""Choosing a network and a method for given examples, by cross-validation on these alone, within a time."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmeta.adapt.base import AVERAGE, NETWORK, STARTING, TRAINED, Base
from distmeta.adapt.folds import Fold, folds
from distmeta.adapt.methods import CONTRASTIVE_STEPS, FITS, FROZEN, TOGETHER, Fitted, Scores, Support, why_not
from distmeta.errors import UserError
from distmeta.evaluate.fine_tuning import MOST_TEXTS, STEPS

AUTO = "auto"
FIRST = ("logistic-regression", "prototype")
"""What all else is compared with, the former where each class has several examples."""
NETWORKS = (TRAINED, AVERAGE, STARTING, NETWORK)
"""In the order in which they are taken where nothing tells them apart."""
TUNED = ("contrastive", "fine-tune", "inner-loop")
"""Methods that change the network, each of which takes seconds, in the order in which they are tried."""

USUAL = {
    "logistic-regression": (0.0, 0.0),
    "prototype": (0.0, 0.015),
    "contrastive": (0.04, 0.05),
    "fine-tune": (0.035, 0.05),
    "inner-loop": (0.0, 0.04),
}
"""What methods have right more often than a logistic regression on the same network (0 to 1), and the standard
deviation of that over data sets. From MiniLM on TREC, HWU64, SST-2, AG News and sentence polarity, 4 and 16 examples of
a class, the medians are 0.001, 0.037 and 0.036; TREC gains 0.23 and 0.17, the others 0.01 to 0.07."""
OF_NETWORKS = 0.04
"""The standard deviation over data sets of what one network of a run has right more often than another."""

BACK_AND_FORTH = 2
"""What a text takes in training, times what it takes for its features (measured: 1.5 to 2.6, where bf16 is faster)."""


def texts_seen(method: str, examples: int) -> int:
    """How many texts go through the network in a fit that changes it, about."""
    if method == "contrastive":
        return CONTRASTIVE_STEPS * min(examples, MOST_TEXTS)
    return max(STEPS * min(examples, MOST_TEXTS), 2 * examples)


@dataclass(frozen=True)
class Tried:
    """A network in one use, as the examples left out of its fits saw it."""

    network: str
    method: str
    rows: NDArray[np.int64]
    """The examples, once a prediction."""
    scores: Scores
    """Of each, by a fit that did not have it."""
    seconds: float
    """Of one fit, on average."""

    def right(self, labels: NDArray[np.int64]) -> NDArray[np.floating]:
        """By example, how often it was predicted right (0 to 1); NaN of one that was never left out."""
        hits = (self.scores.argmax(1) == labels[self.rows]).astype(float)
        count = np.bincount(self.rows, minlength=len(labels))
        with np.errstate(invalid="ignore"):
            return np.bincount(self.rows, hits, minlength=len(labels)) / count

    def accuracy(self, labels: NDArray[np.int64]) -> float:
        """Share of the predictions that are right."""
        return float(np.nanmean(self.right(labels)))


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why."""

    network: str
    method: str
    why: str
    tried: Sequence[Tried]
    """All of it, the chosen one included where it was tried."""
    left_out: Sequence[str] = ()
    """Methods for which there was no time."""

    @property
    def own(self) -> Tried | None:
        """What was seen of the chosen one; None where nothing could be left out."""
        found = (each for each in self.tried if (each.network, each.method) == (self.network, self.method))
        return next(found, None)


class Trials:
    """Fits networks to parts of the examples, the features of which are computed once a network.

    Args:
        bases: the networks.
        support: the examples.
        seed: of how they are divided.
        names: one more example of each class, its name, on which every fit rests; None: names are not used.
    """

    def __init__(self, bases: Sequence[Base], support: Support, seed: int, names: Support | None = None) -> None:
        self.bases = {base.name: base for base in bases}
        self.support, self.names = support, names
        self.rounds = folds(support.labels, seed, least=1 if names else 2)
        self._features: dict[str, NDArray[np.floating]] = {}
        self._seconds: dict[str, float] = {}

    @property
    def can_be_told(self) -> bool:
        """Whether any class has two examples."""
        return bool(self.rounds)

    def features(self, network: str) -> NDArray[np.floating]:
        """Of the examples, and of the names behind them."""
        if network not in self._features:
            tokens = [*self.support.tokens, *(self.names.tokens if self.names else [])]
            started = time.monotonic()
            self._features[network] = self.bases[network].features(tokens)
            self._seconds[network] = (time.monotonic() - started) / len(tokens)
        return self._features[network]

    def fit(self, network: str, method: str, rows: NDArray[np.int64] | None = None) -> Fitted:
        """A classifier from all examples, or from some."""
        count = len(self.support.labels)
        rows = np.arange(count) if rows is None else rows
        support, features = self.support.part(rows), self.features(network)
        if self.names:
            support = support.with_more(self.names)
            rows = np.concatenate([rows, np.arange(count, len(features))])
        return FITS[method](self.bases[network], support, features[rows])

    def all(self, network: str, method: str) -> Tried:
        """What comes of all rounds of folds."""
        return self._tried(network, method, list(chain.from_iterable(self.rounds)))

    def within(self, network: str, method: str, until: float) -> Tried | None:
        """The same of one round, as far as the time goes; None where a fold and the last fit would not end in time, as
        what the network takes for a text foretells."""
        self.features(network)
        foreseen = BACK_AND_FORTH * self._seconds.get(network, 0.0) * texts_seen(method, len(self.support.labels))
        if time.monotonic() + 2 * foreseen > until:
            return None
        done: list[Fold] = []
        parts: list[Tried] = []
        for fold in self.rounds[0]:
            slowest = max((part.seconds for part in parts), default=0.0)
            if time.monotonic() + 2 * slowest > until:
                break
            parts.append(self._tried(network, method, [fold]))
            done.append(fold)
        if len(done) < min(2, len(self.rounds[0])):
            return None
        rows, scores = np.concatenate([part.rows for part in parts]), np.concatenate([part.scores for part in parts])
        return Tried(network, method, rows, scores, float(np.mean([part.seconds for part in parts])))

    def _tried(self, network: str, method: str, some: Sequence[Fold]) -> Tried:
        features, seconds, found = self.features(network), 0.0, []
        for fold in some:
            started = time.monotonic()
            fitted = self.fit(network, method, fold.train)
            seconds += time.monotonic() - started
            if method in (*FROZEN, TOGETHER):
                found.append(fitted.of_features(features[fold.test]))  # type: ignore[attr-defined]  # those are Linear
            else:
                found.append(fitted.scores([self.support.tokens[row] for row in fold.test]))
        rows = np.concatenate([fold.test for fold in some])
        return Tried(network, method, rows, np.concatenate(found), seconds / len(some))


def choose(trials: Trials, method: str, seconds: float, shown: Mapping[str, Any]) -> Choice:
    """The network and the method to take.

    Frozen uses are tried first, with all networks, then those that change the best of these, while there is time. What
    cross-validation shows is weighed against what is usual, since a dozen examples show little: see `usual_gain`.

    Args:
        trials: on the examples.
        method: one of `FITS`, or auto.
        seconds: for trying what changes a network.
        shown: what the evaluation of the run showed of its networks (see `distmeta.models.description`).

    Raises:
        UserError: the method cannot be had.
    """
    until = time.monotonic() + seconds
    networks = [name for name in NETWORKS if name in trials.bases]
    if method != AUTO:
        networks = [each for each in networks if not why_not(method, trials.bases[each], trials.support)]
        if not networks:
            anyone = next(iter(trials.bases.values()))
            raise UserError(f"--method {method}: {why_not(method, anyone, trials.support)}")
    if not trials.can_be_told:
        return _untold(trials, networks, method, shown)
    uses = FROZEN if method == AUTO else (method,) if method in (*FROZEN, TOGETHER) else ()
    tried = [trials.all(network, use) for network in networks for use in _in_order(uses, trials.support)]

    left_out: list[str] = []

    def best() -> Tried:
        return _best(tried, trials.support.labels, shown)

    for use in TUNED if method == AUTO else (method,) if method in TUNED else ():
        # An inner loop is of the network that its algorithm has trained.
        network = best().network if tried and use != "inner-loop" else networks[0]
        if why_not(use, trials.bases[network], trials.support):
            continue
        if (found := trials.within(network, use, until)) is not None:
            tried.append(found)
        else:
            left_out.append(use)
    if not tried:
        return Choice(networks[0], method, f"no time was left to try it ({seconds:g} s)", ())
    own = best()
    return Choice(own.network, own.method, _why(own, tried, trials.support.labels), tried, left_out)


def _in_order(uses: Sequence[str], support: Support) -> Iterator[str]:
    first = FIRST[0] if support.fewest > 1 else FIRST[1]
    yield from sorted(uses, key=lambda use: use != first)


def _untold(trials: Trials, networks: Sequence[str], method: str, shown: Mapping[str, Any]) -> Choice:
    """With one example of each class nothing can be left out."""
    use = FIRST[1] if method == AUTO else method
    of_use = {name: uses[use] for name, uses in shown.items() if name in networks and use in uses}
    if len(of_use) > 1:
        network = max(of_use, key=lambda name: of_use[name])
        figures = ", ".join(f"{name} {value:.1%}" for name, value in of_use.items())
        return Choice(network, use, f"each class has one example; the run's own evaluation showed {figures}", ())
    return Choice(networks[0], use, "each class has one example, so that nothing could be tried on these", ())


def _best(tried: Sequence[Tried], labels: NDArray[np.int64], shown: Mapping[str, Any]) -> Tried:
    """The one that is expected to gain most over the first one, the examples and what is usual being weighed by how
    sure each is: the mean of a normal distribution after a normal observation."""
    first = tried[0]

    def gain(each: Tried) -> float:
        usual, spread = usual_gain(first, each, shown)
        if each is first:
            return 0.0
        seen = right_of_both(each, first, labels)
        # With one more difference than there are, so that a few that are all the same are not certain.
        variance = (float((seen**2).sum()) + 1) / (len(seen) + 1) / len(seen)
        weight = spread**2 / (spread**2 + variance)
        return weight * float(seen.mean()) + (1 - weight) * usual

    return max(tried, key=gain)


def usual_gain(first: Tried, other: Tried, shown: Mapping[str, Any]) -> tuple[float, float]:
    """What a network in a use has right more often than another one as a rule (0 to 1), and the standard deviation of
    that over data sets: by what methods gain on held-in sets, and what the run's evaluation showed of its networks."""
    (of_other, spread), (of_first, _) = (USUAL.get(each.method, (0.0, 0.0)) for each in (other, first))
    use = FIRST[0] if all(FIRST[0] in shown.get(each.network, {}) for each in (first, other)) else FIRST[1]
    networks = [shown.get(each.network, {}).get(use) for each in (first, other)]
    between = networks[1] - networks[0] if None not in networks else 0.0
    is_same = first.network == other.network
    return of_other - of_first + between, float(np.hypot(spread, 0.0 if is_same else OF_NETWORKS))


def _why(own: Tried, tried: Sequence[Tried], labels: NDArray[np.int64]) -> str:
    right = own.right(labels)
    right = right[~np.isnan(right)]
    text = f"{100 * right.mean():.1f} ± {196 * _standard_error(right):.1f}% right in cross-validation"
    others = [each for each in tried if each is not own]
    if not others:
        return text
    second = max(others, key=lambda each: each.accuracy(labels))
    difference = right_of_both(own, second, labels)
    margin, half = 100 * difference.mean(), 196 * _standard_error(difference)
    told = "not told apart from" if abs(margin) <= half else "better than" if margin > 0 else "worse than"
    return f"{text}, {told} {second.network} {second.method} ({margin:+.1f} ± {half:.1f})"


def right_of_both(own: Tried, other: Tried, labels: NDArray[np.int64]) -> NDArray[np.floating]:
    """By example that both predicted: how much more often the first was right."""
    difference = own.right(labels) - other.right(labels)
    return difference[~np.isnan(difference)]


def _standard_error(values: NDArray[np.floating]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("inf")
