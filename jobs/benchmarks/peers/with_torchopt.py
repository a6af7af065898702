"""`torchopt` (Ren et al. 2023, https://arxiv.org/abs/2211.06934).

Second order is its `MetaSGD` on a module whose state is taken before a task and put back behind it. In first order its
functional SGD updates in place, and the gradient at the adapted weights is taken, as FOMAML says.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torchopt

from distmeta.compute.batch import TaskBatch
from peers.work import Classifier, Contestant, LossAndGradient, Outcome, Weights, Work, mean_over_tasks, put_weights


def make(work: Work) -> Contestant | None:
    """One module whose parameters are the fast weights of the task at hand."""
    if work.workload.adapt != "all":
        return None
    model = Classifier(work)
    names = [name for name, _ in model.encoder.named_parameters()]
    buffers = [parameter.data for parameter in model.encoder.parameters()]
    functional_sgd = torchopt.sgd(lr=work.inner_lr)

    def first_order(task: TaskBatch, weights: Weights) -> LossAndGradient:
        with torch.no_grad():
            torch._foreach_copy_(buffers, [weights[name] for name in names])
            model.head.weight.zero_()
            model.head.bias.zero_()
        fast = tuple(model.parameters())
        state = functional_sgd.init(fast)
        for _ in range(work.inner_steps):
            gradients = torch.autograd.grad(model.loss(work, task.support, task.support_labels), fast)
            updates, state = functional_sgd.update(gradients, state, params=fast, inplace=True)
            torchopt.apply_updates(fast, updates, inplace=True)
        loss = model.loss(work, task.query, task.query_labels)
        return loss, torch.autograd.grad(loss, fast[: len(names)])

    def second_order(task: TaskBatch, start: Any, sources: Sequence[torch.Tensor]) -> LossAndGradient:
        inner = torchopt.MetaSGD(model, lr=work.inner_lr)
        for _ in range(work.inner_steps):
            inner.step(model.loss(work, task.support, task.support_labels))
        loss = model.loss(work, task.query, task.query_labels)
        gradients = torch.autograd.grad(loss, sources)
        torchopt.recover_state_dict(model, start)
        return loss, gradients

    def run(weights: Weights, tasks: Sequence[TaskBatch]) -> Outcome:
        if not work.workload.second_order:
            return mean_over_tasks(tasks, lambda task: first_order(task, weights), names)
        put_weights(model.encoder, weights)
        start = torchopt.extract_state_dict(model, by="reference")
        sources = list(model.encoder.parameters())
        return mean_over_tasks(tasks, lambda task: second_order(task, start, sources), names)

    return run
