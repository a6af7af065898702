"""What every algorithm is: a task in, a gradient out; and for evaluation a support set in, a classifier out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from distmeta.compute.batch import TaskBatch
from distmeta.meta.config import MetaConfig
from distmeta.meta.kept_similarity import KeptSimilarity

Parameters = dict[str, Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]
Classifier = Callable[[Any], Tensor]
"""Scores (examples, n_way) of a batch."""


class Features(Protocol):
    """What an algorithm asks of a network: `distmeta.models.Network`, or `distmeta.meta.library.ModuleFeatures`."""

    hidden_size: int
    computation: str
    takes_both: bool
    """Whether support and query set may go through together."""
    is_random: bool
    takes_tasks: bool
    """Whether several tasks, with weights of their own, may go through together."""

    def features(self, parameters: Parameters, batch: Any) -> Tensor: ...
    def adapted_names(self, adapt: str, last_k: int = 1) -> list[str]: ...
    def together(self, *batches: Any) -> Any: ...
    def localized(self, parameters: Parameters, batches: list[Any], least_rows: int = 0) -> Any: ...
    def named_parameters(self) -> Any: ...


@dataclass
class TaskResult:
    """What one task gives; of several side by side, sums over them."""

    gradients: Parameters
    """Gradient of the outer loss by parameter; of one that nothing depends on there is none."""
    query_loss: float
    query_accuracy: float | None
    """None where the labels are no classes."""
    query_accuracy_before: float | None
    """Accuracy of the unadapted network; None where it means nothing."""
    support_losses: list[float] = field(default_factory=list)
    """Mean loss on the support set before each inner step."""
    inner_seconds: float = 0.0
    """Time of the inner loop."""
    of_rows: tuple[str, ...] = ()
    """The parameters whose gradients are of some rows alone: those of `rows`."""
    rows: Tensor | None = None


@dataclass
class Outcome:
    """The same before it is read: on a GPU, to read a number is to wait for it."""

    gradients: Parameters
    query_loss: Tensor
    query_accuracy: Tensor | None
    query_accuracy_before: Tensor | None = None
    support_losses: list[Tensor] = field(default_factory=list)
    inner_seconds: float = 0.0

    def read(self, of_rows: tuple[str, ...] = (), rows: Tensor | None = None) -> TaskResult:
        """Waits for all numbers at once."""
        accuracies = [each for each in (self.query_accuracy, self.query_accuracy_before) if each is not None]
        numbers = [self.query_loss, *self.support_losses, *accuracies]
        loss, *rest = torch.stack([each.detach().double() for each in numbers]).tolist()
        losses, rest = rest[: len(self.support_losses)], rest[len(self.support_losses) :]
        accuracy = None if self.query_accuracy is None else rest.pop(0)
        before = None if self.query_accuracy_before is None else rest.pop(0)
        return TaskResult(self.gradients, loss, accuracy, before, losses, self.inner_seconds, of_rows, rows)


class Algorithm(ABC):
    """One way to learn to learn.

    Args:
        network: computes features from parameters that it is given.
        config: the settings.
        criterion: loss of scores and labels.
        zero_head: whether scores come from a linear head that starts at zero (see `distmeta.meta.inner_loop`);
            otherwise they are the features themselves, as in regression.
    """

    second_order: ClassVar[bool] = False
    """Whether the paper differentiates through the inner loop."""
    needs_language_model: ClassVar[bool] = False
    needs_head: ClassVar[bool] = False
    """Whether it is about a linear head, and so about features of a known width."""
    needs_every_class: ClassVar[bool] = False
    """Whether it makes something of the support examples of each class."""
    needs_training_classes: ClassVar[bool] = False
    """Whether it has a head over all classes of training: `learned_of_classes`, and `TaskBatch.head`."""
    starts_at_chance: ClassVar[bool] = False
    """Whether the unadapted network gives every class the same score."""

    def __init__(
        self,
        network: Any,
        config: MetaConfig,
        criterion: Criterion = functional.cross_entropy,
        *,
        zero_head: bool = True,
    ) -> None:
        self.network = network
        self.config = config
        self.criterion = criterion
        self.zero_head = zero_head
        self.is_second_order = self.second_order if config.second_order is None else config.second_order
        self.adapted: list[str] = []
        """Names of the fast weights beside the head."""
        self.kept: KeptSimilarity | None = None
        """What of the starting network is kept, where `meta.keep_similarity` asks for it."""
        self.trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}

    @property
    def takes_tasks(self) -> bool:
        """Whether `task_gradient` takes several tasks side by side (`distmeta.compute.batch.join`)."""
        return False

    @property
    def copies(self) -> int:
        """How many versions of what it adapts a task holds at a time, its gradients left out."""
        return 1

    @property
    def joins_halves(self) -> bool:
        """Whether a task's support and query set go through the network in one pass."""
        return False

    @property
    def keeps_aside(self) -> bool:
        """Whether second-order derivatives by fast weights are added up in place (`distmeta.compute.twice`)."""
        return False

    @classmethod
    def learned(cls, network: Any, config: MetaConfig) -> Parameters:
        """Starting values of what is learned beside the network, by name; they become parameters `learned.*`."""
        return {}

    @classmethod
    def learned_of_classes(cls, network: Any, config: MetaConfig, classes: Any) -> Parameters:
        """The same of what is learned about the classes of training (`distmeta.meta.multitask.TrainingClasses`)."""
        return {}

    @classmethod
    def differentiates_twice(cls, config: MetaConfig) -> bool:
        """Whether the network's own passes are differentiated twice, which fused attention cannot be."""
        return (cls.second_order if config.second_order is None else config.second_order) and config.adapt != "head"

    @classmethod
    def of_features(cls, config: MetaConfig) -> Callable[[Tensor, Tensor, Tensor, int], Tensor] | None:
        """What makes scores of features that are there already, where `fit` asks the network for no more than those of
        each text: of a support set's features, their labels, the features of queries, and `n_way`. Scores are as those
        of `fit` but for a factor above 0. None where `fit` needs the network itself."""
        return None

    @abstractmethod
    def task_gradient(self, parameters: Parameters, task: TaskBatch, progress: float = 1.0) -> TaskResult:
        """The task's part of the meta-gradient.

        Args:
            parameters: meta-parameters theta, by name; they are not changed.
            task: the task.
            progress: share of the outer steps that is done, in [0, 1].
        """

    @abstractmethod
    def fit(self, parameters: Parameters, support: Any, labels: Tensor, n_way: int, inner_steps: int) -> Classifier:
        """What a user of the network would do with a support set; keeps no graph."""


def accuracy(scores: Tensor, labels: Tensor, texts_per_task: Sequence[int] = ()) -> Tensor | None:
    """Share of the rows whose largest score is their label's, of several tasks the sum; None for labels of no class."""
    if labels.is_floating_point():
        return None
    hits = (scores.argmax(1) == labels).float().split(list(texts_per_task) or len(labels))
    return torch.stack([each.mean() for each in hits]).sum()
