"""Multi-task training: what a user would do with the same labelled texts without any meta-learning.

    w_c      a learned vector for each class c of training, in one head a data set
    scores   cos(f, w_c) / 0.1 over all classes that the task's data set has in training
    outer    gradient of the cross-entropy of all the task's texts, support and query; there is no inner loop

The heads serve training alone: whoever uses the network, on classes that have no vector, takes its features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distmeta.compute.batch import HeadRows, TaskBatch, concatenate, texts_of_tasks
from distmeta.meta.algorithm import Algorithm, Classifier, Outcome, Parameters, TaskResult, accuracy
from distmeta.meta.protonet import class_means

TEMPERATURE = 0.1
STANDARD_DEVIATION = 0.001
"""Of the vectors' first values. The cosine knows no length, so it says how far a step of AdamW turns a vector: at the
0.02 that transformers gives a head, 40 steps at 5e-5 hardly turned one and made the encoder no better; at 0.001 they
did.
"""

HEAD = "learned.head"


class TrainingClasses:
    """The classes of training by data set, each with a row of the head.

    Args:
        by_dataset: names of the classes that each labelled data set has in training.
    """

    def __init__(self, by_dataset: Mapping[str, Sequence[str]]) -> None:
        self._rows: dict[str, dict[str, int]] = {}
        first = 0
        for dataset, names in sorted(by_dataset.items()):
            self._rows[dataset] = {name: first + number for number, name in enumerate(sorted(names))}
            first += len(names)
        self._total = first

    def __len__(self) -> int:
        return self._total

    def rows(self, dataset: str, classes: Sequence[str], device: torch.device) -> HeadRows:
        """Where the head has the classes of a task, which come in the order of its labels."""
        known = self._rows[dataset]
        rows = torch.tensor([known[name] for name in classes], device=device)
        first = min(known.values())
        return HeadRows((rows,), ((first, first + len(known)),))


class MultiTask(Algorithm):
    """No inner loop, and no task but for the texts that it brings together."""

    needs_every_class = True
    needs_training_classes = True

    @property
    def takes_tasks(self) -> bool:
        """See `Algorithm`."""
        return self.network.takes_tasks

    @property
    def joins_halves(self) -> bool:
        """See `Algorithm`."""
        return self.network.takes_both

    @classmethod
    def learned_of_classes(cls, network: Any, config: Any, classes: TrainingClasses) -> Parameters:
        """The heads, one below the other: (classes, hidden_size)."""
        return {"head": torch.empty(len(classes), network.hidden_size).normal_(std=STANDARD_DEVIATION)}

    @classmethod
    def differentiates_twice(cls, config: Any) -> bool:
        """Never."""
        return False

    def task_gradient(self, parameters: Parameters, task: TaskBatch, progress: float = 1.0) -> TaskResult:
        """See `Algorithm`. The loss is that of all texts and classes, the accuracy that of the query texts among the
        classes of their task."""
        assert task.head is not None, "a task whose classes have no place in the head"
        local = self.network.localized(parameters, [task.support, task.query])
        theta = {name: value.detach().requires_grad_(name in self.trained) for name, value in local.parameters.items()}
        if self.joins_halves:
            both = self.network.features(theta, concatenate(*local.batches))
            halves = both.split([len(task.support_labels), len(task.query_labels)])
        else:
            halves = tuple(self.network.features(theta, batch) for batch in local.batches)
        per_task = [
            _parts(features, labels, texts_of_tasks(batch))
            for features, labels, batch in zip(
                halves, (task.support_labels, task.query_labels), (task.support, task.query), strict=True
            )
        ]
        losses, hits = [], []
        for support, query, rows, span in zip(*per_task, task.head.rows, task.head.spans, strict=True):
            scores = self.scores(theta, torch.cat([support[0], query[0]]), span)
            wanted = rows[torch.cat([support[1], query[1]])] - span[0]
            losses.append(self.criterion(scores, wanted))
            hits.append(accuracy(scores[len(support[1]) :, rows - span[0]], query[1]))
        loss = torch.stack(losses).sum()
        objective = loss if self.kept is None else loss + self.kept.loss(halves[0], halves[1], task)
        sources = {name: value for name, value in theta.items() if value.requires_grad}
        found = torch.autograd.grad(objective, list(sources.values()), allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(sources, found, strict=True) if gradient is not None}
        return Outcome(gradients, loss, torch.stack(hits).sum()).read(local.of_rows, local.rows)  # type: ignore[arg-type]

    def scores(self, parameters: Parameters, features: Tensor, span: tuple[int, int]) -> Tensor:
        """Scores of each text for each class of a data set, whose rows are those of the span."""
        head = parameters[HEAD][span[0] : span[1]]
        return functional.normalize(features) @ functional.normalize(head).t() / TEMPERATURE

    @classmethod
    def of_features(cls, config: Any) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
        """See `Algorithm`. New classes have no vectors: the means of their support examples stand for them."""

        def scores(support: Tensor, labels: Tensor, query: Tensor, n_way: int) -> Tensor:
            centers = class_means(functional.normalize(support), labels, n_way, None)
            return functional.normalize(query) @ functional.normalize(centers).t() / TEMPERATURE

        return scores

    @torch.no_grad()
    def fit(self, parameters: Parameters, support: Any, labels: Tensor, n_way: int, inner_steps: int) -> Classifier:
        """See `Algorithm`."""
        own = self.network.features(parameters, support)

        @torch.no_grad()
        def classify(query: Any) -> Tensor:
            return self.of_features(self.config)(own, labels, self.network.features(parameters, query), n_way)

        return classify


def _parts(features: Tensor, labels: Tensor, sizes: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and labels of each of several tasks, or of the one that there is."""
    each = list(sizes) or [len(labels)]
    return zip(features.split(each), labels.split(each), strict=True)
