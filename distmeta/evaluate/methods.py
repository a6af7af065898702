"""The methods of an evaluation: what each makes of an episode, from features that are there already or by itself."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from distmeta.corpus.executor import Executor
from distmeta.evaluate.baselines import logistic_regression, nearest_prototype, tf_idf_logistic_regression
from distmeta.evaluate.episodes import Episode
from distmeta.evaluate.features import Features
from distmeta.evaluate.networks import Candidate, Place, load
from distmeta.evaluate.results import Use
from distmeta.evaluate.score import EpisodeScore
from distmeta.tasks.episode import Task


@dataclass(frozen=True)
class Method:
    """A network in one of its uses, or something else that makes a classifier of a support set."""

    network: str
    """meta-pretrained, starting and so on, or tf-idf."""
    use: Use
    score: Callable[[Sequence[Episode]], Iterator[EpisodeScore]]
    """The score of each episode, in order, as it is asked for."""
    needs_features: bool = False
    episodes: int | None = None
    """It is asked for the first so many alone; None: for all."""

    @property
    def name(self) -> str:
        """The network and its use: `meta-pretrained inner-loop`."""
        return f"{self.network} {self.use}"


def methods_of(candidate: Candidate, features: Callable[[], Features], executor: Executor) -> list[Method]:
    """The methods that use a network; its frozen `features` are asked for by those that need them."""

    def frozen(use: Use, predict: Callable[..., np.ndarray]) -> Method:
        return Method(candidate.name, use, lambda episodes: _of_features(features(), episodes, predict), True)

    def inner_loop(episodes: Sequence[Episode]) -> Iterator[EpisodeScore]:
        units = [InnerLoopUnit(candidate.place, episode.task) for episode in episodes]
        yield from executor.map(_inner_loop, units, f"inner loops of {candidate.name}")

    return [
        Method(candidate.name, "inner-loop", inner_loop),
        frozen("prototype", nearest_prototype),
        frozen("logistic-regression", lambda support, labels, query, _: logistic_regression(support, labels, query)),
    ]


def tf_idf() -> Method:
    """The method that knows no network."""
    return Method("tf-idf", "logistic-regression", _tf_idf)


@dataclass(frozen=True, slots=True)
class InnerLoopUnit:
    """An episode, and the network that adapts to it."""

    place: Place
    task: Task


def _inner_loop(unit: InnerLoopUnit) -> EpisodeScore:
    return next(load(unit.place).score([unit.task], ("inner-loop",)))["inner-loop"]


def _of_features(
    features: Features, episodes: Sequence[Episode], predict: Callable[..., np.ndarray]
) -> Iterator[EpisodeScore]:
    for episode in episodes:
        support, query = features.values[episode.support], features.values[episode.query]
        started = time.perf_counter()
        predictions = predict(support, episode.support_labels, query, episode.n_way)
        seconds = time.perf_counter() - started + float(features.seconds[episode.support].sum())
        yield EpisodeScore(episode.query_labels, predictions, None, seconds)


def _tf_idf(episodes: Sequence[Episode]) -> Iterator[EpisodeScore]:
    for episode in episodes:
        support, query = (
            [example.shown for example in episode.examples(numbers)] for numbers in (episode.support, episode.query)
        )
        started = time.perf_counter()
        predictions = tf_idf_logistic_regression(support, episode.support_labels, query)
        yield EpisodeScore(episode.query_labels, np.asarray(predictions), None, time.perf_counter() - started)
