"""`torchopt` (Ren et al. 2023, https://arxiv.org/abs/2211.06934).

Second order is its `MetaSGD` on a module whose state is taken before a task and put back behind it. In first order its
functional SGD updates in place, and the gradient at the adapted weights is taken, as FOMAML says.
"""

from collections.abc import Sequence

import torch
import torchopt

from distmeta.models import TaskBatch
from peers.work import Classifier, Contestant, Outcome, Weights, Work, put_weights


def make(work: Work) -> Contestant | None:
    """One module whose parameters are the fast weights of the task at hand."""
    if work.workload.adapt != "all":
        return None
    model = Classifier(work)
    names = [name for name, _ in model.encoder.named_parameters()]
    buffers = [parameter.data for parameter in model.encoder.parameters()]
    functional_sgd = torchopt.sgd(lr=work.inner_lr)

    def adapt(task: TaskBatch, weights: Weights) -> list[torch.Tensor]:
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
        return list(fast[: len(names)])

    def adapt_twice(task: TaskBatch) -> None:
        inner = torchopt.MetaSGD(model, lr=work.inner_lr)
        for _ in range(work.inner_steps):
            inner.step(model.loss(work, task.support, task.support_labels))

    def run(weights: Weights, tasks: Sequence[TaskBatch]) -> Outcome:
        total: list[torch.Tensor] = []
        query_loss = 0.0
        if work.workload.second_order:
            put_weights(model.encoder, weights)
            start = torchopt.extract_state_dict(model, by="reference")
            meta: list[torch.Tensor] = list(model.encoder.parameters())
        for task in tasks:
            if work.workload.second_order:
                adapt_twice(task)
                sources = meta
            else:
                sources = adapt(task, weights)
            loss = model.loss(work, task.query, task.query_labels)
            gradients = list(torch.autograd.grad(loss, sources))
            if work.workload.second_order:
                torchopt.recover_state_dict(model, start)
            query_loss += float(loss.detach()) / len(tasks)
            if total:
                torch._foreach_add_(total, gradients)
            else:
                total = gradients
        torch._foreach_div_(total, len(tasks))
        return Outcome(dict(zip(names, total, strict=True)), query_loss)

    return run
