"""Model-agnostic meta-learning (Finn et al. 2017, https://arxiv.org/abs/1703.03400).

With phi(theta) the result of the inner loop on the support set S, the outer objective of a task is the loss of
phi(theta) on its query set Q:

    maml    gradient of L_Q(phi(theta)) with respect to theta, through every inner step
    fomaml  gradient of L_Q(phi) with respect to phi, taken as if it were theta's (first order, section 5.2)

Parameters that are not adapted get the plain gradient of L_Q in both.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from distmeta.meta.inner_loop import adapt, logits
from distmeta.models import Network, Parameters, TaskBatch


@dataclass(frozen=True)
class TaskResult:
    """What one task gives."""

    gradients: Parameters
    """Gradient of the query loss, for every meta-parameter that the features depend on."""
    query_loss: float
    query_accuracy: float
    query_accuracy_before: float
    """Accuracy of the unadapted network, which is exactly chance: a head of zeros gives every class the same score."""
    support_losses: list[float]
    inner_seconds: float
    """Time of the inner loop."""


def task_gradient(
    network: Network,
    parameters: Parameters,
    task: TaskBatch,
    *,
    adapted_names: Sequence[str],
    inner_lr: float,
    inner_steps: int,
    second_order: bool,
) -> TaskResult:
    """The meta-gradient of one task; `parameters` are not changed."""
    if second_order:
        parameters = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    started = time.perf_counter()
    adapted = adapt(
        network,
        parameters,
        task.support,
        task.support_labels,
        task.n_way,
        adapted_names=adapted_names,
        inner_lr=inner_lr,
        inner_steps=inner_steps,
        second_order=second_order,
    )
    inner_seconds = time.perf_counter() - started
    # First order: the gradient at the adapted point stands for the one at the start.
    sources = parameters if second_order else {n: value.requires_grad_() for n, value in adapted.parameters.items()}
    scores = logits(network, adapted, task.query)
    loss = functional.cross_entropy(scores, task.query_labels)
    gradients = torch.autograd.grad(loss, list(sources.values()), allow_unused=True)
    return TaskResult(
        {name: gradient for name, gradient in zip(sources, gradients, strict=True) if gradient is not None},
        float(loss.detach()),
        float((scores.argmax(1) == task.query_labels).float().mean()),
        float((task.query_labels == 0).float().mean()),  # the argmax of equal scores is the first class
        adapted.support_losses,
        inner_seconds,
    )
