"""The learning core for a network and tasks of one's own: no configuration file, no Ray, no DeepSpeed."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from distmeta.compute.batch import TaskBatch
from distmeta.errors import UserError
from distmeta.impossible import contradictions
from distmeta.meta.algorithm import Classifier, Criterion, Parameters
from distmeta.meta.config import MetaConfig
from distmeta.meta.registry import algorithm_class
from distmeta.models.network import Localized
from distmeta.recipes import filled_meta
from distmeta.section import finds

_OF_NUMBERS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
"""Losses that, given scores and numbers of classes, compute something all the same where the shapes happen to fit."""


@dataclass(frozen=True)
class Examples:
    """Batches for a module, of which nothing is known but how many examples each has."""

    batches: tuple[Any, ...]
    counts: tuple[int, ...]


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
        """Whether it computes something else each time that it is asked, by its dropout modules."""
        return self.training and any("Dropout" in type(module).__name__ for module in self.modules())

    def learn(self, values: Parameters) -> None:
        """Takes in what an algorithm learns beside the module, as parameters `learned.*`."""
        self.learned.update({name: nn.Parameter(value) for name, value in values.items()})

    def adapted_names(self, adapt: str, last_k: int = 1) -> list[str]:
        """See `meta.adapt`: all, head, bias, or regex:PATTERN over the module's own names.

        Raises:
            UserError: there are none, and it is not `head`.
        """
        parameters = dict(self.module.named_parameters())
        if adapt == "head":
            return []
        if adapt.startswith("regex:"):
            names = [name for name in parameters if finds(adapt.removeprefix("regex:"), name, "meta.adapt")]
        elif adapt in ("all", "bias"):
            names = [name for name, parameter in parameters.items() if adapt == "all" or parameter.ndim <= 1]
        else:
            raise UserError(f"meta.adapt: {adapt} needs a transformer; use all, head, bias or regex:PATTERN")
        if not names:
            raise UserError(f"meta.adapt: {adapt} finds no parameter of this module")
        return [f"module.{name}" for name in names]

    def localized(self, parameters: Parameters, batches: Sequence[Any], least_rows: int = 0) -> Localized:
        """Everything: nothing is known of the module's embeddings."""
        return Localized(parameters, list(batches), None, None)

    def together(self, *batches: Examples) -> Examples:
        """All of them, which go through the module one after the other: how to put them together nobody knows."""
        return Examples(
            tuple(batch for each in batches for batch in each.batches),
            tuple(count for each in batches for count in each.counts),
        )

    def features(self, parameters: Parameters, batch: Any) -> Tensor:
        """The module's output for `Examples`, or for a batch.

        Raises:
            UserError: it has another width than was said, or is not of as many examples as there are labels.
        """
        return functional_call(self, parameters, (batch,))

    def forward(self, batch: Any) -> Tensor:
        """For `features`."""
        if not isinstance(batch, Examples):
            return self._checked(self.module(batch), None)
        counted = zip(batch.batches, batch.counts, strict=True)
        parts = [self._checked(self.module(each), count) for each, count in counted]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _checked(self, output: Tensor, count: int | None) -> Tensor:
        shape = tuple(getattr(output, "shape", ()))
        if self.hidden_size and shape[1:] != (self.hidden_size,):
            raise UserError(
                f"hidden_size: the module must give features of the shape (examples, {self.hidden_size}), and gave "
                f"{shape}; say their width"
            )
        if count is not None and shape[:1] not in ((), (count,)):
            raise UserError(f"labels: give one for each example; there are {count} for {shape[0]} examples")
        return output


class MetaLearner(nn.Module):
    """A module that learns to learn; its parameters, to be given to any optimizer, are the module's and what the
    algorithm learns beside it.

    What does not require a gradient gets none, and yet moves in the inner loop where it is adapted, as by `adapt: all`.

    In training mode, what the module draws is taken to come from dropout modules: without any, features that an inner
    step leaves as they were are not computed again, as `torch.nn.functional.dropout` would need.

    Args:
        module: maps a batch to features (examples, hidden_size), or, without a head, to the output itself. A batch is
            whatever it takes.
        hidden_size: width of the features; unset: there is no few-shot head, as in regression.
        loss: of scores and labels.
        is_loaded: whether the module has learned something already: by that, settings that are left out are those of
            another recipe (`distmeta.recipes`).
        **settings: those of `MetaConfig`, such as `algorithm`, `adapt`, `inner_lr`, `inner_steps`.

    Raises:
        UserError: a setting is none, or cannot be with the others or with this module.
    """

    def __init__(
        self,
        module: nn.Module,
        hidden_size: int | None = None,
        loss: Criterion = functional.cross_entropy,
        *,
        is_loaded: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        config = filled_meta(_config(settings), is_loaded)
        algorithm = algorithm_class(config.algorithm)
        like = next((value for value in module.parameters() if value.is_floating_point()), None)
        if like is None:
            raise UserError("module: has no parameters that could be learned")
        if algorithm.needs_language_model:
            raise UserError(
                f"meta.algorithm: {config.algorithm} needs a language model, which no module of one's own is"
            )
        if algorithm.needs_training_classes:
            raise UserError(
                f"meta.algorithm: {config.algorithm} needs the classes of a corpus, and of tasks alone none is known"
            )
        if algorithm.needs_head and hidden_size is None:
            raise UserError(f"hidden_size: meta.algorithm {config.algorithm} needs the width of the module's features")
        self._has_head = hidden_size is not None
        if config.adapt == "head" and not self._has_head:
            raise UserError("hidden_size: meta.adapt head needs the width of the module's features")
        self.network = ModuleFeatures(module, hidden_size or 0)
        learned = algorithm.learned(self.network, config)
        self.network.learn({name: value.to(like) for name, value in learned.items()})
        self._loss_name = getattr(loss, "__name__", type(loss).__name__)
        self._algorithm = algorithm(self.network, config, loss, zero_head=self._has_head)
        self._twice = algorithm.differentiates_twice(config)

    def backward(self, tasks: Sequence[TaskBatch], progress: float = 1.0) -> float:
        """Adds the mean meta-gradient of the tasks to `.grad` of the parameters; returns their mean query loss.

        `progress`, the share of training that is done, matters to `multi_step_loss` alone. Buffers of the module move
        as in any forward pass: in training mode, the running statistics of batch norms.

        Raises:
            UserError: there are no tasks, one is none that the algorithm could learn from, or the module's features
                do not fit the labels or `hidden_size`.
        """
        if not tasks:
            raise UserError("tasks: there are none")
        for task in tasks:
            if not isinstance(task, TaskBatch):
                raise UserError(f"tasks: must be of TaskBatch, got one of {type(task).__name__}")
            self._check(task.support_labels, task.n_way)
            self._check(task.query_labels, task.n_way, is_support=False)
        parameters: Parameters = dict(self.network.named_parameters())
        loss = 0.0
        for task in tasks:
            task = replace(
                task,
                support=Examples((task.support,), (len(task.support_labels),)),
                query=Examples((task.query,), (len(task.query_labels),)),
            )
            # Fused attention cannot be differentiated twice.
            with sdpa_kernel(SDPBackend.MATH) if self._twice else nullcontext():
                result = self._algorithm.task_gradient(parameters, task, progress)
            loss += result.query_loss / len(tasks)
            for name, gradient in result.gradients.items():
                share = gradient / len(tasks)
                grad = parameters[name].grad
                parameters[name].grad = share if grad is None else grad + share
        return loss

    def adapt(self, support: Any, labels: Tensor, n_way: int = 0, steps: int | None = None) -> Classifier:
        """What the network becomes on a support set: a function of a batch. Nothing of the module changes.

        Raises:
            UserError: the labels are not those of `n_way` classes, `steps` is below 0, or the module's features do not
                fit the labels or `hidden_size`.
        """
        self._check(labels, n_way)
        steps = self._algorithm.config.inner_steps if steps is None else steps
        if steps < 0:
            raise UserError(f"steps: must be 0 or more, got {steps}")
        values: Parameters = {name: value.detach() for name, value in self.network.named_parameters()}
        values |= {name: value.clone() for name, value in self.network.named_buffers()}
        with torch.enable_grad():
            return self._algorithm.fit(values, Examples((support,), (len(labels),)), labels, n_way, steps)

    def _check(self, labels: Any, n_way: int, *, is_support: bool = True) -> None:
        """Raises UserError where labels are none, or not those of `n_way` classes, if the algorithm needs any."""
        if not isinstance(labels, Tensor):
            raise UserError(f"labels: must be a tensor, got one of {type(labels).__name__}; use torch.as_tensor")
        if not labels.ndim:
            raise UserError("labels: give one for each example, got a single number")
        every = self._algorithm.needs_every_class
        if not (self._has_head or every):
            return
        if n_way < 1:
            raise UserError("n_way: give the number of classes, which the algorithm needs")
        if labels.is_floating_point():
            if every:
                raise UserError("labels: the algorithm needs numbers of classes")
            return
        if labels.dtype != torch.int64 or labels.ndim != 1:
            shape, dtype = tuple(labels.shape), str(labels.dtype).removeprefix("torch.")
            raise UserError(f"labels: those of classes must be int64 of the shape (examples,), got {dtype} of {shape}")
        if self._loss_name in _OF_NUMBERS:
            raise UserError(f"loss: {self._loss_name} is of numbers, and the labels are classes; use cross_entropy")
        found = set(labels.tolist())
        if not found <= set(range(n_way)):
            raise UserError(f"n_way: labels of {n_way} classes are 0 to {n_way - 1}, got {sorted(found)}")
        if is_support and every and len(found) < n_way:
            missing = sorted(set(range(n_way)) - found)
            raise UserError(f"support_labels: the algorithm needs examples of every class, and of {missing} are none")


def _config(settings: dict[str, Any]) -> MetaConfig:
    """The settings, checked.

    Raises:
        UserError: a line for each that is unknown, has no such value, or cannot be with the others.
    """
    try:
        config = MetaConfig(**settings)
    except ValidationError as error:
        lines = [f"meta.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise UserError("\n".join(lines)) from None
    problems = list(contradictions(config))
    if config.freeze_lowest is not None:
        problems.append("meta.freeze_lowest: needs a transformer; set requires_grad of the module's parameters")
    if problems:
        raise UserError("\n".join(problems))
    return config


__all__ = ["MetaLearner", "TaskBatch"]
