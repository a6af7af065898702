"""The methods of an evaluation: what each makes of an episode, from features that are there already or by itself."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
import torch

from distmeta.corpus.executor import Executor, with_progress
from distmeta.evaluate.baselines import fit_and_predict, logistic_regression, nearest_prototype
from distmeta.evaluate.episodes import Episode
from distmeta.evaluate.features import Features
from distmeta.evaluate.fine_tuning import FineTuningUnit, fine_tune
from distmeta.evaluate.networks import OfFeatures, Place, ScoredNetwork, Tokens, load
from distmeta.evaluate.results import TOGETHER, Use
from distmeta.evaluate.score import EpisodeScore
from distmeta.evaluate.tf_idf import TfIdf
from distmeta.evaluate.together import nearest_moved_prototype
from distmeta.meta.threads import in_threads
from distmeta.tasks.episode import Task

Item = TypeVar("Item")

BLOCK_NUMBERS = 2_000_000
"""Numbers of the features of episodes that are computed together."""
TF_IDF_WIDTH = 256
"""What counts as the width of TF-IDF, whose vectors are sparse."""
MOST_CHARACTERS = 20_000_000
"""Characters of the texts whose terms are held at a time."""


@dataclass(frozen=True)
class Method:
    """A network in one of its uses, or something else that makes a classifier of a support set."""

    network: str
    """meta-pretrained, starting and so on, or tf-idf."""
    use: Use
    score: Callable[[Sequence[Episode]], Iterator[EpisodeScore]]
    """The score of each episode, in order, as it is asked for."""
    episodes: int | None = None
    """It is asked for the first so many alone; None: for all."""

    @property
    def name(self) -> str:
        """The network and its use: `meta-pretrained inner-loop`."""
        return f"{self.network} {self.use}"


def methods_of(
    network: ScoredNetwork,
    tokens: Sequence[Tokens],
    features: Callable[[], Features],
    executor: Executor,
    queries_together: bool = False,
) -> list[Method]:
    """The methods that use a network, which has these tokens for each text; its frozen `features` are asked for by
    those that need them. That of all `queries_together` is one where it is asked for."""

    def frozen(use: Use, predict: Callable[..., np.ndarray]) -> Method:
        def scores(episodes: Sequence[Episode]) -> Iterator[EpisodeScore]:
            found = _of_features(features(), episodes, predict)
            return with_progress(found, len(episodes), f"{network.name} {use}", "episode")

        return Method(network.name, use, scores)

    def inner_loop(episodes: Sequence[Episode]) -> Iterator[EpisodeScore]:
        units = [InnerLoopUnit(network.place, episode.encoded(tokens)) for episode in episodes]
        yield from executor.map(_inner_loop, units, f"inner loops of {network.name}")

    def fine_tuning(episodes: Sequence[Episode]) -> Iterator[EpisodeScore]:
        units = [FineTuningUnit(network.place, episode.encoded(tokens)) for episode in episodes]
        yield from executor.map(fine_tune, units, f"fine-tuning {network.name}")

    if network.of_features:
        adapting = [frozen("inner-loop", partial(_by_scores, network.of_features))]
    else:
        adapting = [Method(network.name, "inner-loop", inner_loop)] if network.adapts else []
    found = [
        *adapting,
        frozen("prototype", nearest_prototype),
        frozen("logistic-regression", logistic_regression),
    ]
    if queries_together:
        found.append(frozen(TOGETHER, nearest_moved_prototype))
    if network.fine_tuning_episodes:
        found.append(Method(network.name, "fine-tuning", fine_tuning, episodes=network.fine_tuning_episodes))
    return found


def tf_idf() -> Method:
    """The method that knows no network."""

    def scores(episodes: Sequence[Episode]) -> Iterator[EpisodeScore]:
        return with_progress(_tf_idf(episodes), len(episodes), "tf-idf", "episode")

    return Method("tf-idf", "logistic-regression", scores)


@dataclass(frozen=True, slots=True)
class InnerLoopUnit:
    """An episode, and the network that adapts to it."""

    place: Place
    task: Task


def _inner_loop(unit: InnerLoopUnit) -> EpisodeScore:
    return next(load(unit.place).score([unit.task], ("inner-loop",)))["inner-loop"]


def _by_scores(
    of_features: OfFeatures, support: np.ndarray, labels: np.ndarray, query: np.ndarray, n_way: int
) -> np.ndarray:
    """Predicts the query texts of each of several episodes, as `nearest_prototype` does."""
    parts = zip(torch.from_numpy(support), torch.from_numpy(labels), torch.from_numpy(query), strict=True)
    return torch.stack([of_features(a, b, c, n_way).argmax(1) for a, b, c in parts]).numpy()


def _of_features(
    features: Features, episodes: Sequence[Episode], predict: Callable[..., np.ndarray]
) -> Iterator[EpisodeScore]:
    def compute(block: list[Episode]) -> list[EpisodeScore]:
        support, query = (features.values[numbers] for numbers in _numbers(block))
        started = time.perf_counter()
        predictions = predict(support, _support_labels(block), query, block[0].n_way)
        each = (time.perf_counter() - started) / len(block)
        seconds = [each + float(features.seconds[episode.support].sum()) for episode in block]
        return _block_scores(block, predictions, seconds)

    return _in_blocks(compute, episodes, features.values.shape[1])


def _tf_idf(episodes: Sequence[Episode]) -> Iterator[EpisodeScore]:
    for group in _with_few_characters(episodes):
        numbers = np.unique(np.concatenate([each for one in group for each in (one.support, one.query)]))
        started = time.perf_counter()
        vectors = TfIdf([example.shown for example in group[0].examples(numbers)])
        cutting = (time.perf_counter() - started) / len(numbers)

        def compute(
            block: list[Episode], numbers: np.ndarray = numbers, vectors: TfIdf = vectors, cutting: float = cutting
        ) -> list[EpisodeScore]:
            started = time.perf_counter()
            places = zip(*(np.searchsorted(numbers, each) for each in _numbers(block)), strict=True)
            products, query_products = zip(*(vectors.products(*each) for each in places), strict=True)
            predictions = fit_and_predict(
                np.stack(products), _support_labels(block), np.stack(query_products), block[0].n_way
            )
            each = (time.perf_counter() - started) / len(block)
            return _block_scores(block, predictions, [each + cutting * len(episode.support) for episode in block])

        yield from _in_blocks(compute, group, TF_IDF_WIDTH)


def _numbers(block: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the support and of the query texts of episodes of one shape, (episodes, texts)."""
    return np.stack([episode.support for episode in block]), np.stack([episode.query for episode in block])


def _support_labels(block: Sequence[Episode]) -> np.ndarray:
    return np.stack([episode.support_labels for episode in block])


def _block_scores(
    block: Sequence[Episode], predictions: Iterable[np.ndarray], seconds: Iterable[float]
) -> list[EpisodeScore]:
    return [
        EpisodeScore(episode.query_labels, predicted, None, took)
        for episode, predicted, took in zip(block, predictions, seconds, strict=True)
    ]


def _in_blocks(
    compute: Callable[[list[Episode]], list[EpisodeScore]], episodes: Sequence[Episode], width: int
) -> Iterator[EpisodeScore]:
    """The scores of episodes, of which those of one shape are computed together.

    What is computed is far too small for several threads, which on a busy machine made it 15 times as slow: each block
    has one.
    """
    threads = torch.get_num_threads()
    for some in _batched(_blocks(episodes, width), 4 * threads):  # so that it can be stopped
        for scores in in_threads(compute, some, threads):
            yield from scores


def _blocks(episodes: Sequence[Episode], width: int) -> Iterator[list[Episode]]:
    """Runs of neighbours of one shape whose texts have at most BLOCK_NUMBERS numbers, or single ones."""
    for (_, support, query), alike in groupby(episodes, lambda each: (each.n_way, len(each.support), len(each.query))):
        size = max(1, BLOCK_NUMBERS // ((support + query) * width))
        yield from _batched(alike, size)


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items, so many at a time."""
    left = iter(items)
    while some := list(islice(left, size)):
        yield some


def _with_few_characters(episodes: Sequence[Episode]) -> Iterator[list[Episode]]:
    """Runs of neighbours whose texts have at most MOST_CHARACTERS together, or single ones."""
    group: list[Episode] = []
    known: set[int] = set()
    characters = 0
    for episode in episodes:
        fresh = {*episode.support.tolist(), *episode.query.tolist()} - known
        more = sum(len(episode.texts.examples[number].shown) for number in fresh)
        if group and characters + more > MOST_CHARACTERS:
            yield group
            group, known, characters = [], set(), 0
            fresh = {*episode.support.tolist(), *episode.query.tolist()}
            more = sum(len(episode.texts.examples[number].shown) for number in fresh)
        group.append(episode)
        known |= fresh
        characters += more
    if group:
        yield group
