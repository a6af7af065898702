"""Scoring a network on episodes, in each way that people use one."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distmeta.compute.batch import TaskBatch, TokenBatch, collate_task
from distmeta.compute.precision import passes_in
from distmeta.evaluate.baselines import logistic_regression, nearest_prototype
from distmeta.evaluate.results import NETWORK_USES, Use
from distmeta.meta import Algorithm
from distmeta.models import Network, Parameters
from distmeta.tasks.episode import Task

FEATURE_BATCH = 64
"""Texts that go through the network together where no gradient is asked for."""


@dataclass(frozen=True)
class EpisodeScore:
    """What one use of a network made of one episode."""

    labels: np.ndarray
    predictions: np.ndarray
    """Predicted label of each query example."""
    accuracy_before: float | None
    """Accuracy before adaptation, where the use adapts anything: chance, since the head starts at zero."""
    adapt_seconds: float
    """Time from the support set as tensors to a classifier that can be asked."""

    @property
    def accuracy(self) -> float:
        """Share of the query examples that got their own label."""
        return float((self.labels == self.predictions).mean())


@dataclass(frozen=True)
class Scorer:
    """A network with weights, ready to be scored; nothing of it changes.

    Attributes:
        network: computes features.
        parameters: its weights.
        algorithm: makes a classifier of a support set, which is the use `inner-loop`; None: there is no such use.
        inner_steps: steps of the inner loop.
        precision: `fp32` or `bf16`.
        pad_token_id: what fills short sequences up.
    """

    network: Network
    parameters: Parameters
    algorithm: Algorithm | None
    inner_steps: int
    precision: str
    pad_token_id: int

    def score(self, tasks: Iterable[Task], uses: Sequence[Use] = NETWORK_USES) -> Iterator[dict[Use, EpisodeScore]]:
        """The scores of each episode, by use. First-order adaptation only: no graph outlives an inner step."""
        device = next(iter(self.parameters.values())).device
        training = self.network.training
        self.network.eval()
        try:
            for task in tasks:
                batch = collate_task(task, self.pad_token_id, device)
                with passes_in(self.precision):
                    scores = self._score(batch, uses)
                yield scores
        finally:
            self.network.train(training)

    def _score(self, batch: TaskBatch, uses: Sequence[Use]) -> dict[Use, EpisodeScore]:
        scores: dict[Use, EpisodeScore] = {}
        labels = batch.query_labels.cpu().numpy()
        of_features = self.algorithm.of_features(self.algorithm.config) if self.algorithm else None
        if "inner-loop" in uses and not of_features:
            assert self.algorithm is not None
            start = time.perf_counter()
            classify = self.algorithm.fit(
                self.parameters, batch.support, batch.support_labels, batch.n_way, self.inner_steps
            )
            seconds = time.perf_counter() - start
            predictions = classify(batch.query).argmax(1).cpu().numpy()
            # The argmax of equal scores is the first class.
            before = float((labels == 0).mean()) if self.algorithm.starts_at_chance else None
            scores["inner-loop"] = EpisodeScore(labels, predictions, before, seconds)
        if of_features or "prototype" in uses or "logistic-regression" in uses:
            start = time.perf_counter()
            support = self._frozen_features(batch.support)
            features_seconds = time.perf_counter() - start
            query = self._frozen_features(batch.query)
            support_labels = batch.support_labels.cpu().numpy()
            if "inner-loop" in uses and of_features:
                start = time.perf_counter()
                halves = torch.from_numpy(support), torch.from_numpy(support_labels), torch.from_numpy(query)
                predictions = of_features(*halves, batch.n_way).argmax(1).numpy()
                seconds = features_seconds + time.perf_counter() - start
                scores["inner-loop"] = EpisodeScore(labels, predictions, None, seconds)
            if "prototype" in uses:
                start = time.perf_counter()
                predictions = nearest_prototype(support, support_labels, query, batch.n_way)
                seconds = features_seconds + time.perf_counter() - start
                scores["prototype"] = EpisodeScore(labels, predictions, None, seconds)
            if "logistic-regression" in uses:
                start = time.perf_counter()
                predictions = logistic_regression(support, support_labels, query, batch.n_way)
                seconds = features_seconds + time.perf_counter() - start
                scores["logistic-regression"] = EpisodeScore(labels, predictions, None, seconds)
        return scores

    @torch.no_grad()
    def _frozen_features(self, batch: TokenBatch) -> np.ndarray:
        """Features without adaptation, a bounded batch at a time: an all-way episode may hold thousands of texts."""
        parts = [self.network.features(self.parameters, part) for part in batch.split(FEATURE_BATCH)]
        return torch.cat(parts).cpu().numpy()
