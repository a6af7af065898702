"""The inner loop: adaptation of fast weights on a task's support set.

It is computed in one of two ways that give the same: `plain`, one line a step, which is the reference, and otherwise
without work that need not be done:

- A head of zeros sends no gradient into the network, so the first step moves the head alone, and the second one finds
  the features that the first one computed (unless dropout draws them anew).
- Where nothing below the head is adapted, features are computed once.
- First order with plain gradient descent, each fast weight is updated where its gradient arises, so that there is never
  more than one gradient.

Several tasks may go side by side (`distmeta.compute.by_task`): fast weights then are (tasks, ...), but for the rows of
the word embedding, of which each task has its own anyway, and losses are sums over the tasks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distmeta.compute.batch import TaskBatch, texts_of_tasks
from distmeta.compute.twice import expect, moved
from distmeta.meta.algorithm import Criterion, Features, Outcome, Parameters, accuracy
from distmeta.meta.config import MetaConfig
from distmeta.meta.descent import Descent
from distmeta.meta.inner_optimizer import State, direction

Rate = Callable[[str, int], Any]
"""The learning rate of a fast weight (`head.weight` and `head.bias` for the head's) at an inner step, from 0."""


def zero_head(shape: tuple[int, ...], like: Tensor) -> Parameters:
    """A head that tells no class from another: labels are permuted in every task, so its start must not know them."""
    return {"head.weight": like.new_zeros(shape), "head.bias": like.new_zeros(shape[:-1])}


def scores_of(features: Tensor, head: Parameters, texts_per_task: Sequence[int] = ()) -> Tensor:
    """Scores of each text for each class, (sequences, n_way); the features themselves where there is no head."""
    if not head:
        return features
    weight, bias = head["head.weight"], head["head.bias"]
    if weight.ndim == 2:
        return functional.linear(features, weight, bias)
    if len(set(texts_per_task)) == 1:
        batch = features.view(len(weight), -1, features.shape[1])
        return torch.baddbmm(bias[:, None], batch, weight.transpose(1, 2)).flatten(0, 1)
    parts = zip(features.split(list(texts_per_task)), weight.unbind(), bias.unbind(), strict=True)
    return torch.cat([functional.linear(*each) for each in parts])


def total_loss(criterion: Criterion, scores: Tensor, labels: Tensor, texts_per_task: Sequence[int]) -> Tensor:
    """The sum of the tasks' losses."""
    if len(texts_per_task) < 2:
        return criterion(scores, labels)
    if criterion is functional.cross_entropy and len(set(texts_per_task)) == 1:
        return criterion(scores, labels) * len(texts_per_task)
    sizes = list(texts_per_task)
    return torch.stack([criterion(*each) for each in zip(scores.split(sizes), labels.split(sizes), strict=True)]).sum()


@dataclass
class Fast:
    """Fast weights."""

    body: Parameters
    head: Parameters

    @property
    def all(self) -> Parameters:
        """Both, by name."""
        return self.body | self.head

    def with_values(self, values: Parameters) -> "Fast":
        """The same with other values, by name."""
        return Fast({name: values[name] for name in self.body}, {name: values[name] for name in self.head})


@dataclass
class Problem:
    """What the inner loop minimises, and how."""

    network: Features
    fixed: Parameters
    """All parameters; those of the same name among the fast weights stand in their place."""
    support: Any
    labels: Tensor
    criterion: Criterion
    config: MetaConfig
    rate: Rate
    head_is_zero: bool
    second_order: bool = False
    given: Tensor | None = None
    """The features, where nothing below the head is adapted and they are there already."""
    record: Callable[[Parameters], None] | None = None
    """Is told the direction of each step, what the rates multiply, or of parts of a step."""
    losses: list[Tensor] = field(default_factory=list)
    """Loss on the support set before each step; filled in."""

    @property
    def texts_per_task(self) -> tuple[int, ...]:
        """Where there are several tasks, how many texts each has."""
        return texts_of_tasks(self.support)

    @property
    def is_plain_descent(self) -> bool:
        """Whether a step is a number times the gradient."""
        config = self.config
        is_plain = config.inner_optimizer == "sgd" and not config.inner_clipping
        return is_plain and isinstance(self.rate("head.bias", 0), float)

    def expect(self, body: Parameters, step: int) -> None:
        """To be called before a pass whose gradient moves the body: see `distmeta.compute.twice`."""
        if self.is_plain_descent:
            for name, value in body.items():
                expect(value, -self.rate(name, step))

    def features(self, body: Parameters) -> Tensor:
        """Features of the support set."""
        if self.given is not None:
            return self.given
        return self.network.features({**self.fixed, **body}, self.support)

    def loss(self, features: Tensor, head: Parameters) -> Tensor:
        """Loss on the support set."""
        scores = scores_of(features, head, self.texts_per_task)
        loss = total_loss(self.criterion, scores, self.labels, self.texts_per_task)
        self.losses.append(loss.detach())
        return loss

    def outcome(
        self, gradients: Parameters, loss: Tensor, scores: Tensor, task: TaskBatch, inner_seconds: float
    ) -> Outcome:
        """What the task gives, of which the query loss and scores after the inner loop are these."""
        before = None
        if self.head_is_zero:
            # A head of zeros gives every class the same score, and the argmax of equal scores is the first class.
            before = accuracy(torch.zeros_like(scores), task.query_labels, task.query_sizes)
        found = accuracy(scores, task.query_labels, task.query_sizes)
        return Outcome(gradients, loss, found, before, self.losses, inner_seconds)


def inner_loop(problem: Problem, start: Fast, steps: int) -> Iterator[Fast]:
    """Yields the fast weights after each step.

    Second order they carry their graph back to `start` and `problem.fixed`; first order they are leaves, whose graph
    of one step is held at a time, and which the next step may change in place.
    """
    if problem.network.computation == "plain":
        return _plain(problem, start, steps)
    return _economical(problem, start, steps)


def _plain(problem: Problem, fast: Fast, steps: int) -> Iterator[Fast]:
    state: State = {}
    for step in range(steps):
        fast = _differentiable(fast, problem.second_order)
        loss = problem.loss(problem.features(fast.body), fast.head)
        fast, state = _step(problem, fast, _gradients(loss, fast.all, problem.second_order), state, step)
        yield fast


def _economical(problem: Problem, fast: Fast, steps: int) -> Iterator[Fast]:
    state: State = {}
    first_order = not problem.second_order
    descent = None
    if first_order and problem.is_plain_descent:
        # A rate that is a number is the same at each step.
        by_task = bool(problem.texts_per_task)
        descent = Descent(fast.all, lambda name: problem.rate(name, 0), problem.record, by_task=by_task)
        fast = fast.with_values(descent.leaves)
    draws_anew = problem.network.is_random
    features: Tensor | None = None
    for step in range(steps):
        head_alone = not fast.body or (step == 0 and problem.head_is_zero)
        if descent is None:
            # While the features are those of before, so are the tensors that they were computed from.
            kept = features is not None and fast.body
            fast = Fast(fast.body if kept else _leaves(fast.body, first_order), _leaves(fast.head, first_order))
        if features is None:
            if descent is not None:
                descent.expect()
            problem.expect(fast.body, step)
            with torch.set_grad_enabled(not (first_order and head_alone and (draws_anew or not fast.body))):
                features = problem.features(fast.body)
        # Its own tensor: the head may depend on the same features, which are no way from the body to this loss.
        here = features.detach() if head_alone and first_order else features.view_as(features)
        loss = problem.loss(here, fast.head)
        moving = fast.head if head_alone else fast.all
        if descent is not None:
            del here  # with the graph, the leaves of which are about to go
            descent.step(loss, moving)
            fast = fast.with_values(descent.leaves)
        else:
            if head_alone or first_order:
                gradients = _gradients(loss, moving, problem.second_order)
            else:
                gradients = _gradients(loss, {"features": here} | fast.head, second_order=True)
                gradients |= _gradients(features, fast.body, True, gradients.pop("features"))
            fast, state = _step(problem, fast, gradients, state, step)
            del gradients  # before the next graph
        if fast.body and (not head_alone or draws_anew):
            features = None
        yield fast


def _differentiable(fast: Fast, second_order: bool) -> Fast:
    return Fast(_leaves(fast.body, not second_order), _leaves(fast.head, not second_order))


def _leaves(values: Parameters, cut: bool) -> Parameters:
    if cut:
        return {name: value.detach().requires_grad_() for name, value in values.items()}
    return {name: value if value.requires_grad else value.requires_grad_() for name, value in values.items()}


def _gradients(output: Tensor, fast: Parameters, second_order: bool, cotangent: Tensor | None = None) -> Parameters:
    gradients = torch.autograd.grad(
        output,
        list(fast.values()),
        cotangent,
        create_graph=second_order,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(fast, gradients, strict=True))


def stepped(value: Tensor, move: Tensor, rate: Any) -> Tensor:
    """value - rate * move, in one operation where the rate is a number."""
    return moved(value, move, -rate) if isinstance(rate, float) else value - rate * move


def _step(problem: Problem, fast: Fast, gradients: Parameters, state: State, step: int) -> tuple[Fast, State]:
    moves, state = direction(gradients, state, problem.config)
    if problem.record is not None:
        problem.record({name: move.detach() for name, move in moves.items()})

    def after(values: Parameters) -> Parameters:
        found = dict(values)
        for name in values.keys() & moves.keys():
            found[name] = stepped(values[name], moves[name], problem.rate(name, step))
            if not problem.second_order:
                found[name] = found[name].detach()
        return found

    return Fast(after(fast.body), after(fast.head)), state
