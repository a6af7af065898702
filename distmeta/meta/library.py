"""The learning core for a network and tasks of one's own: no configuration file, no Ray, no DeepSpeed."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from distmeta.meta.algorithm import Classifier, Criterion, Parameters
from distmeta.meta.config import MetaConfig
from distmeta.meta.registry import algorithm_class
from distmeta.models.batch import TaskBatch
from distmeta.models.network import Localized


class ModuleFeatures(nn.Module):
    """Any module as a network: its output for a batch, whatever that is, is the features (examples, width)."""

    computation = "economical"
    takes_both = False  # a batch may be anything, and a module may take means over it
    takes_tasks = False
    embedding = None

    def __init__(self, module: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.module = module
        self.hidden_size = hidden_size
        self.learned = nn.ParameterDict()

    @property
    def is_random(self) -> bool:
        """Whether it computes something else each time that it is asked."""
        return self.training and any("Dropout" in type(module).__name__ for module in self.modules())

    def learn(self, values: Parameters) -> None:
        """Takes in what an algorithm learns beside the module, as parameters `learned.*`."""
        self.learned.update({name: nn.Parameter(value) for name, value in values.items()})

    def adapted_names(self, adapt: str, last_k: int = 1) -> list[str]:
        """See `meta.adapt`: all, head, bias, or regex:PATTERN over the module's own names."""
        names = {f"module.{name}": parameter for name, parameter in self.module.named_parameters()}
        if adapt.startswith("regex:"):
            return [name for name in names if re.search(adapt.removeprefix("regex:"), name.removeprefix("module."))]
        kept = {"all": lambda p: True, "head": lambda p: False, "bias": lambda p: p.ndim <= 1}
        if adapt not in kept:
            raise ValueError(f"adapt: {adapt} needs a transformer; use all, head, bias or regex:PATTERN")
        return [name for name, parameter in names.items() if kept[adapt](parameter)]

    def localized(self, parameters: Parameters, batches: Sequence[Any]) -> Localized:
        """Everything: nothing is known of the module's embeddings."""
        return Localized(parameters, list(batches), None, None)

    def features(self, parameters: Parameters, batch: Any) -> Tensor:
        """The module's output."""
        return functional_call(self, parameters, (batch,))

    def forward(self, batch: Any) -> Tensor:
        """For `features`."""
        return self.module(batch)


class MetaLearner(nn.Module):
    """A module that learns to learn; its parameters, to be given to any optimizer, are the module's and what the
    algorithm learns beside it.

    Args:
        module: maps a batch to features (examples, hidden_size), or, without a head, to the output itself.
        hidden_size: width of the features; unset: there is no few-shot head, as in regression.
        loss: of scores and labels.
        **settings: those of `MetaConfig`, such as `algorithm`, `adapt`, `inner_lr`, `inner_steps`.
    """

    def __init__(
        self,
        module: nn.Module,
        hidden_size: int | None = None,
        loss: Criterion = functional.cross_entropy,
        **settings: Any,
    ) -> None:
        super().__init__()
        config = MetaConfig(**settings)
        algorithm = algorithm_class(config.algorithm)
        self.network = ModuleFeatures(module, hidden_size or 0)
        self.network.learn(algorithm.learned(self.network, config))
        self._algorithm = algorithm(self.network, config, loss, zero_head=hidden_size is not None)

    def backward(self, tasks: Sequence[TaskBatch], progress: float = 1.0) -> float:
        """Adds the mean meta-gradient of the tasks to `.grad` of the parameters; returns their mean query loss.

        `progress`, the share of training that is done, matters to `multi_step_loss` alone.
        """
        parameters: Parameters = dict(self.network.named_parameters())
        loss = 0.0
        for task in tasks:
            result = self._algorithm.task_gradient(parameters, task, progress)
            loss += result.query_loss / len(tasks)
            for name, gradient in result.gradients.items():
                share = gradient / len(tasks)
                grad = parameters[name].grad
                parameters[name].grad = share if grad is None else grad + share
        return loss

    def adapt(self, support: Any, labels: Tensor, n_way: int = 0, steps: int | None = None) -> Classifier:
        """What the network becomes on a support set: a function of a batch. Nothing of the module changes."""
        parameters = {name: value.detach() for name, value in self.network.named_parameters()}
        steps = self._algorithm.config.inner_steps if steps is None else steps
        with torch.enable_grad():
            return self._algorithm.fit(parameters, support, labels, n_way, steps)


__all__ = ["MetaLearner", "TaskBatch"]
