"""Reptile (Nichol et al. 2018, https://arxiv.org/abs/1803.02999).

    inner    phi <- phi - inner_lr * gradient of L(phi), on support and query set together
    outer    (theta - phi) / inner_lr, taken for a gradient (section 2), which is the sum of the inner directions

The task is not split, so the query loss and accuracy that are reported are on texts that the inner loop has seen.
Parameters that are not adapted get no gradient: `meta.weight_decay` alone moves them.
"""

import time
from typing import Any

import torch

from distmeta.compute.batch import TaskBatch
from distmeta.meta.algorithm import TaskResult
from distmeta.meta.gradient_based import GradientBased
from distmeta.meta.inner_loop import inner_loop, scores_of


class Reptile(GradientBased):
    """First order by nature."""

    takes_tasks = False  # whose support and query sets would have to alternate

    def task_gradient(self, parameters: Any, task: TaskBatch, progress: float = 1.0) -> TaskResult:
        """See `Algorithm`."""
        whole = self.network.together(task.support, task.query)
        labels = torch.cat([task.support_labels, task.query_labels])
        local = self._localized({name: value.detach() for name, value in parameters.items()}, [whole])
        head = self.start_head(local.parameters, local.batches[0], labels, task.n_way)
        problem = self.problem(local.parameters, local.batches[0], labels)
        gradients: dict[str, torch.Tensor] = {}

        def add(moves: dict[str, torch.Tensor]) -> None:
            for name in moves.keys() & self.trained:
                gradients[name] = gradients[name].add_(moves[name]) if name in gradients else moves[name].clone()

        problem.record = add
        started = time.perf_counter()
        start = self.start(local.parameters, head, local.batches[0], None)
        for fast in inner_loop(problem, start, self.config.inner_steps):  # noqa: B007
            pass
        spent = time.perf_counter() - started
        with torch.no_grad():
            features = self.network.features({**local.parameters, **fast.body}, local.batches[0])
            scores = scores_of(features, fast.head)[len(task.support_labels) :]
            loss = self.criterion(scores, task.query_labels)
        return problem.outcome(gradients, loss, scores, task, spent).read(local.of_rows, local.rows)
