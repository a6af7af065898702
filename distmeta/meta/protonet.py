"""Prototypical networks (Snell et al. 2017, https://arxiv.org/abs/1703.05175).

    c_k      the mean feature of the support examples of class k
    scores   -d(f, c_k) / temperature, where d is the squared Euclidean distance, or 1 - cosine
    outer    gradient of the cross-entropy of the query set's scores; there is no inner loop
             (with `meta.keep_similarity` and its term, see `distmeta.meta.kept_similarity`)

The temperature may be learned: it is kept as its logarithm.

By `centred-cosine` features have length 1, and the mean of the prototypes is taken from prototypes and queries before
their cosine, as SimpleShot (Wang et al. 2019, https://arxiv.org/abs/1911.04623) does with the mean of its training
classes: what all classes of a task share, such as its subject, does not count. A loaded encoder then need not forget
how alike texts are across tasks in order to tell classes apart within one.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distmeta.compute.batch import TaskBatch, concatenate, texts_of_tasks
from distmeta.meta.algorithm import Algorithm, Classifier, Outcome, Parameters, TaskResult, accuracy
from distmeta.meta.inner_loop import total_loss

CENTRED = "centred-cosine"
"""The `meta.distance` of features about the middle of a task's prototypes."""


def class_means(rows: Tensor, labels: Tensor, n_way: int, support: Any) -> Tensor:
    """Mean over the rows, one for each example of a support set, by class: (n_way, width), behind a dimension of tasks
    where the support set is that of several."""
    tasks = texts_of_tasks(support)
    if tasks:
        labels = labels + n_way * support.task_numbers
    members = functional.one_hot(labels, n_way * max(1, len(tasks))).to(rows.dtype)
    means = (members.t() @ rows) / members.sum(0)[:, None]
    return means.unflatten(0, (len(tasks), n_way)) if tasks else means


class PrototypicalNetwork(Algorithm):
    """No inner loop."""

    needs_every_class = True

    @property
    def takes_tasks(self) -> bool:
        """See `Algorithm`."""
        return self.network.takes_tasks

    @property
    def joins_halves(self) -> bool:
        """See `Algorithm`."""
        return self.network.takes_both

    @classmethod
    def learned(cls, network: Any, config: Any) -> Parameters:
        """The logarithm of the temperature, (1,), where it is to be learned."""
        return {"log_temperature": torch.tensor([math.log(_temperature(config))])} if config.learn_temperature else {}

    @classmethod
    def differentiates_twice(cls, config: Any) -> bool:
        """Never."""
        return False

    @classmethod
    def of_features(cls, config: Any) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
        """See `Algorithm`."""

        def scores(support: Tensor, labels: Tensor, query: Tensor, n_way: int) -> Tensor:
            return -_distances(config, _prototypes(config, support, labels, n_way, None), query)

        return scores

    def scores(self, parameters: Parameters, centers: Tensor, features: Tensor) -> Tensor:
        """Scores of each text for each class: (sequences, n_way)."""
        distances = _distances(self.config, centers, features)
        learned = parameters.get("learned.log_temperature")
        return -distances / (_temperature(self.config) if learned is None else learned.exp())

    def task_gradient(self, parameters: Parameters, task: TaskBatch, progress: float = 1.0) -> TaskResult:
        """See `Algorithm`."""
        local = self.network.localized(parameters, [task.support, task.query])
        theta = {name: value.detach().requires_grad_(name in self.trained) for name, value in local.parameters.items()}
        if self.joins_halves:
            both = self.network.features(theta, concatenate(*local.batches))
            support, query = both.split([len(task.support_labels), len(task.query_labels)])
        else:
            support, query = (self.network.features(theta, batch) for batch in local.batches)
        centers = _prototypes(self.config, support, task.support_labels, task.n_way, task.support)
        parts = (
            zip(centers.unbind(), query.split(list(task.query_sizes)), strict=True)
            if task.query_sizes
            else [(centers, query)]
        )
        scores = torch.cat([self.scores(theta, *part) for part in parts])
        loss = total_loss(self.criterion, scores, task.query_labels, task.query_sizes)
        objective = loss if self.kept is None else loss + self.kept.loss(support, query, task)
        sources = {name: value for name, value in theta.items() if value.requires_grad}
        found = torch.autograd.grad(objective, list(sources.values()), allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(sources, found, strict=True) if gradient is not None}
        outcome = Outcome(gradients, loss, accuracy(scores, task.query_labels, task.query_sizes))
        return outcome.read(local.of_rows, local.rows)

    @torch.no_grad()
    def fit(self, parameters: Parameters, support: Any, labels: Tensor, n_way: int, inner_steps: int) -> Classifier:
        """See `Algorithm`."""
        centers = _prototypes(self.config, self.network.features(parameters, support), labels, n_way, support)

        @torch.no_grad()
        def classify(query: Any) -> Tensor:
            return self.scores(parameters, centers, self.network.features(parameters, query))

        return classify


def _prototypes(config: Any, rows: Tensor, labels: Tensor, n_way: int, support: Any) -> Tensor:
    """See `class_means`."""
    return class_means(functional.normalize(rows) if config.distance == CENTRED else rows, labels, n_way, support)


def _distances(config: Any, centers: Tensor, features: Tensor) -> Tensor:
    """Of each feature from each prototype, (features, n_way)."""
    if config.distance == "euclidean":
        return (features[:, None] - centers[None]).square().sum(2)
    if config.distance == CENTRED:
        middle = centers.mean(0)
        features, centers = functional.normalize(features) - middle, centers - middle
    return 1 - functional.normalize(features) @ functional.normalize(centers).t()


def _temperature(config: Any) -> float:
    if config.temperature is not None:
        return config.temperature
    return 1.0 if config.distance == "euclidean" else 0.1
