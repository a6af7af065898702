"""A plain PyTorch loop, written as well as a competent user writes it.

Each task is padded to its longest sentence. Fast weights are copied in place into buffers that are made once and
updated by one fused call; features are computed once where only the head is adapted; adapters are layers beside their
weight, so that no frozen weight gets a gradient.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.func import functional_call
from torch.nn import functional

from distmeta.compute.batch import TaskBatch, TokenBatch
from peers.work import N_WAY, Contestant, Outcome, Weights, Work, encoder, features, put_weights

Sentences = list[tuple[torch.Tensor, torch.Tensor]]
"""Token ids and attention mask of each batch that goes through the encoder at once."""


def make(work: Work) -> Contestant | None:
    """The loop with one batch a support set and one a query set."""
    return make_loop(work, 1)


def make_loop(work: Work, buckets: int) -> Contestant:
    """The loop with the sentences of a set in at most `buckets` batches by length."""
    model = encoder(work)
    names = [name for name, _ in model.named_parameters()]
    trained = [name for name in names if work.workload.trains(name)]
    head = torch.zeros(N_WAY, work.shape.width, dtype=work.dtype, device=work.device)
    bias = torch.zeros(N_WAY, dtype=work.dtype, device=work.device)

    def loss_of(scored: torch.Tensor, fast_head: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(functional.linear(scored, *fast_head), labels)

    def zero_head() -> list[torch.Tensor]:
        return [head.clone().requires_grad_(), bias.clone().requires_grad_()]

    def encode(parts: Sentences, weights: Weights | None = None) -> torch.Tensor:
        def call(**arguments: torch.Tensor) -> Any:
            return model(**arguments) if weights is None else functional_call(model, weights, kwargs=arguments)

        with work.autocast():
            return torch.cat([features(call, ids, mask) for ids, mask in parts])

    def adapt_body(support: Sentences, labels: torch.Tensor) -> list[torch.Tensor]:
        """FOMAML: the fast weights are the model's own parameters, updated in place."""
        fast_head = zero_head()
        fast = [*(model.get_parameter(name) for name in trained), *fast_head]
        for _ in range(work.inner_steps):
            gradients = torch.autograd.grad(loss_of(encode(support), fast_head, labels), fast)
            with torch.no_grad():
                torch._foreach_add_(fast, gradients, alpha=-work.inner_lr)
        return fast_head

    def adapt_head(known: torch.Tensor, labels: torch.Tensor, second_order: bool) -> list[torch.Tensor]:
        fast = zero_head()
        for _ in range(work.inner_steps):
            gradients = torch.autograd.grad(loss_of(known, fast, labels), fast, create_graph=second_order)
            fast = list(torch._foreach_add(fast, gradients, alpha=-work.inner_lr))
            if not second_order:
                fast = [value.detach().requires_grad_() for value in fast]
        return fast

    def adapt_twice(start: Weights, support: Sentences, labels: torch.Tensor) -> tuple[Weights, list[torch.Tensor]]:
        """MAML: every step is a new set of weights that the graph goes through."""
        fast = [*start.values(), *zero_head()]
        for _ in range(work.inner_steps):
            body = dict(zip(start, fast, strict=False))
            loss = loss_of(encode(support, body), fast[-2:], labels)
            gradients = torch.autograd.grad(loss, fast, create_graph=True)
            fast = list(torch._foreach_add(fast, gradients, alpha=-work.inner_lr))
        return dict(zip(start, fast, strict=False)), fast[-2:]

    first_order_body = work.workload.algorithm == "fomaml" and work.workload.adapt != "head"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in set(trained))
    buffers = {name: parameter.data for name, parameter in model.named_parameters() if name in set(trained)}

    def run(weights: Weights, tasks: Sequence[TaskBatch]) -> Outcome:
        total: list[torch.Tensor] = []
        query_loss = torch.zeros((), dtype=work.dtype, device=work.device)
        inner_seconds = 0.0
        put_weights(model, {**weights, **buffers} if first_order_body else weights)
        sources: list[torch.Tensor] = [model.get_parameter(name) for name in trained]
        for task in tasks:
            support, support_labels = split(task.support, task.support_labels, buckets)
            query, query_labels = split(task.query, task.query_labels, buckets)
            started = time.perf_counter()
            adapted = None
            if first_order_body:
                torch._foreach_copy_(list(buffers.values()), [weights[name] for name in buffers])
                fast_head = adapt_body(support, support_labels)
            elif work.workload.adapt == "all":
                start = {name: weights[name].detach().requires_grad_() for name in names}
                sources = [start[name] for name in trained]
                adapted, fast_head = adapt_twice(start, support, support_labels)
            else:
                with torch.set_grad_enabled(work.workload.second_order):
                    known = encode(support)
                fast_head = adapt_head(known, support_labels, work.workload.second_order)
            inner_seconds += time.perf_counter() - started
            loss = loss_of(encode(query, adapted), fast_head, query_labels)
            gradients = list(torch.autograd.grad(loss, sources))
            query_loss += loss.detach()
            if total:
                torch._foreach_add_(total, gradients)
            else:
                total = gradients
        torch._foreach_div_(total, len(tasks))
        return Outcome(
            dict(zip(trained, total, strict=True)),
            float(query_loss) / len(tasks),
            # On a GPU the work has only been queued when the clock is read.
            inner_seconds if work.device.type == "cpu" and not work.workload.second_order else None,
        )

    return run


def split(batch: TokenBatch, labels: torch.Tensor, buckets: int) -> tuple[Sentences, torch.Tensor]:
    """The sentences in batches of about one size by length, each cut to its longest, and their labels in that order.

    No batch is of less than five: the gradient of every weight is added up over the batches, which costs more than the
    padding of so few sentences.
    """
    buckets = max(1, min(buckets, len(labels) // 5))
    if buckets == 1:
        return [(batch.input_ids, batch.attention_mask)], labels
    lengths, order = batch.attention_mask.sum(1).sort()
    longest = lengths.tolist()
    parts, start = [], 0
    for rows in order.tensor_split(buckets):
        start += len(rows)
        length = longest[start - 1]
        parts.append((batch.input_ids[rows, :length], batch.attention_mask[rows, :length]))
    return parts, labels[order]
