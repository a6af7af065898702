"""`higher` (Grefenstette et al. 2019, https://arxiv.org/abs/1910.01727).

In first order it is told not to track the inner steps, so that it holds one step's graph, and the gradient at the
adapted weights is taken, as FOMAML says.
"""

from collections.abc import Sequence

import higher
import torch

from distmeta.compute.batch import TaskBatch
from peers.work import Classifier, Contestant, LossAndGradient, Outcome, Weights, Work, mean_over_tasks, put_weights


def make(work: Work) -> Contestant | None:
    """A patched copy of the module for each task, stepped by a differentiable SGD."""
    if work.workload.adapt != "all":
        return None
    model = Classifier(work)
    names = [name for name, _ in model.encoder.named_parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=work.inner_lr)
    second_order = work.workload.second_order

    def gradient(task: TaskBatch) -> LossAndGradient:
        with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False, track_higher_grads=second_order) as (
            patched,
            inner,
        ):
            for _ in range(work.inner_steps):
                inner.step(Classifier.loss(patched, work, task.support, task.support_labels))
            loss = Classifier.loss(patched, work, task.query, task.query_labels)
            sources = list(model.parameters()) if second_order else list(patched.parameters())
            # The encoder's parameters are before the head's, which has none from one task to the next.
            return loss, torch.autograd.grad(loss, sources[: len(names)])

    def run(weights: Weights, tasks: Sequence[TaskBatch]) -> Outcome:
        put_weights(model.encoder, weights)
        return mean_over_tasks(tasks, gradient, names)

    return run
