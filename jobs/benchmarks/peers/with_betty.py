"""`betty` (Choe et al. 2022, https://arxiv.org/abs/2207.02849).

As its own MAML example has it: an inner problem that is unrolled for the inner steps from the outer problem's weights,
and an outer problem whose loss is the query loss. The outer gradient is accumulated over the meta-batch, so that one
task's graph is held at a time. In first order the inner steps are not tracked, and there is no path from the outer to
the inner problem along which an implicit gradient would be approximated: what is left is FOMAML.
"""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.logging.logger_base import get_logger
from betty.problems import ImplicitProblem, IterativeProblem
from torch.nn import functional

from distmeta.compute.batch import TaskBatch, TokenBatch
from peers.work import Classifier, Contestant, Outcome, Weights, Work, put_weights


class Outer(ImplicitProblem):
    """The meta-parameters: the encoder."""

    work: Work
    tasks: Sequence[TaskBatch] = ()
    done = 0
    query_loss = 0.0
    gradients: tuple[torch.Tensor, ...] = ()

    def get_batch(self) -> TaskBatch:
        """The task that the inner problem has adapted to."""
        return self.tasks[self.done]

    def training_step(self, batch: TaskBatch) -> torch.Tensor:
        """The query loss at the inner problem's weights."""
        loss: torch.Tensor = self.inner.loss(batch.query, batch.query_labels)
        self.query_loss += float(loss.detach()) / len(self.tasks)
        self.done += 1
        return loss

    def custom_optimizer_step(self) -> None:
        """Takes the accumulated meta-gradient away instead of stepping along it."""
        self.gradients = tuple(parameter.grad for parameter in self.trainable_parameters())


class Inner(IterativeProblem):
    """The fast weights: the encoder and the head."""

    work: Work
    params: tuple[torch.Tensor, ...]

    def on_inner_loop_start(self) -> None:
        """Starts from the outer weights and a head of zeros."""
        (outer,) = self._parents
        weights = list(outer.trainable_parameters())
        head = [torch.zeros_like(value).requires_grad_() for value in self.params[len(weights) :]]
        self.params = (*(value.clone() for value in weights), *head)

    def custom_optimizer_step(self) -> tuple[torch.Tensor, ...]:
        """Plain differentiable SGD. The library's own keeps each gradient as momentum, and with it the last task's
        graph, which has been freed by the time the next task's gradient goes through it."""
        gradients: list[Any] = [value.grad for value in self.params]
        for value in self.params:
            value.grad = None  # in second order it refers to the graph that it is part of, and neither would be freed
        return tuple(torch._foreach_add(self.params, gradients, alpha=-self.work.inner_lr))

    def loss(self, batch: TokenBatch, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy at the fast weights (nats)."""
        with self.work.autocast():
            scores = self.fmodule(self.params, self.buffers, batch.input_ids, batch.attention_mask)
        return functional.cross_entropy(scores.to(self.work.dtype), labels)

    def get_batch(self) -> TaskBatch:
        """The task whose turn it is."""
        (outer,) = self._parents
        return outer.tasks[outer.done]

    def training_step(self, batch: TaskBatch) -> torch.Tensor:
        """The support loss."""
        return self.loss(batch.support, batch.support_labels)


def make(work: Work) -> Contestant | None:
    """One engine, run for as many inner steps as the meta-batch takes."""
    if work.workload.adapt != "all":
        return None
    get_logger().setLevel(logging.WARNING)
    second_order = work.workload.second_order
    model = Classifier(work)
    names = [name for name, _ in model.encoder.named_parameters()]
    engines: dict[int, tuple[Engine, Outer]] = {}

    def engine_for(count: int) -> tuple[Engine, Outer]:
        outer = Outer(
            "outer",
            Config(first_order=not second_order, gradient_accumulation=count),
            model.encoder,
            device=work.device,
        )
        inner = Inner(
            "inner",
            Config(unroll_steps=work.inner_steps, retain_graph=second_order),
            model,
            torch.optim.SGD(model.parameters()),  # asked for by the engine, and not used
            device=work.device,
        )
        inner.work = work
        downward: dict[Any, list[Any]] = {outer: [inner]} if second_order else {}
        engine = Engine(
            problems=[outer, inner],
            config=EngineConfig(train_iters=work.inner_steps * count, valid_step=10**9),
            dependencies={"u2l": downward, "l2u": {inner: [outer]}},
        )
        return engine, outer

    def run(weights: Weights, tasks: Sequence[TaskBatch]) -> Outcome:
        put_weights(model.encoder, weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of functorch's end, and of `.grad` that the library sets itself
            if len(tasks) not in engines:
                engines[len(tasks)] = engine_for(len(tasks))
            engine, outer = engines[len(tasks)]
            outer.tasks, outer.done, outer.query_loss = tasks, 0, 0.0
            engine.run()
        return Outcome(dict(zip(names, outer.gradients, strict=True)), outer.query_loss)

    return run
