"""The outer gradient of algorithms that have an inner loop.

With phi(theta) the fast weights after the inner loop on the support set S, from phi_0(theta), and L_Q the loss of phi
on the query set Q, the meta-gradient of a task is d/d theta of L_Q(phi(theta), theta).

First order takes d phi / d phi_0 for the identity (Finn et al. 2017, section 5.2), so that the gradient at phi stands
for that at phi_0. Second order is exact, either by keeping the graph of the whole loop, or, with `recompute`, by going
back through it a step at a time (`distmeta.meta.recomputed`).

A task may be several side by side: phi then has a dimension of tasks, and the gradient is the sum of the tasks'.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distmeta.compute.batch import TaskBatch, concatenate, join, texts_of_tasks
from distmeta.compute.destinations import send_gradient
from distmeta.compute.parts import is_batched
from distmeta.compute.twice import Adjoint, begin
from distmeta.meta.algorithm import Algorithm, Classifier, Outcome, Parameters, TaskResult
from distmeta.meta.backwards import most_states
from distmeta.meta.gradients import accumulate, gradients_of, requiring, settled, summed
from distmeta.meta.inner_loop import Fast, Problem, Rate, inner_loop, scores_of, total_loss, zero_head
from distmeta.meta.recomputed import recomputed
from distmeta.models.network import Localized


@dataclass(frozen=True)
class Prepared:
    """A task with the parameters that it needs."""

    parameters: Parameters
    task: TaskBatch
    both: Any
    """Support and query set as one batch, where they go through the network in one pass; else None."""
    embedding: str | None
    """The parameter that holds rows of this task alone."""
    rows: Tensor | None
    """The rows that it holds."""
    of_rows: tuple[str, ...]
    """The parameters that hold those rows alone."""


class GradientBased(Algorithm):
    """Has an inner loop. A subclass says where the head starts and how fast each weight learns."""

    starts_at_chance = True

    def __init__(self, network: Any, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(network, config, *arguments, **options)
        self.adapted = network.adapted_names(config.adapt, config.last_k)
        self.learns_rates = any(name.startswith("learned.inner_lr") for name, _ in network.named_parameters())

    @property
    def takes_tasks(self) -> bool:
        """See `Algorithm`. Not where gradients are clipped, by a norm over all weights of one task."""
        return self.network.takes_tasks and not self.config.inner_clipping

    @property
    def joins_halves(self) -> bool:
        """See `Algorithm`. Where the same weights make the features of both."""
        is_once = self.is_second_order and not self.adapted and not self.config.recompute
        return is_once and self.network.takes_both

    @property
    def keeps_aside(self) -> bool:
        """See `Algorithm`. Not where products are batched, which autograd adds up itself."""
        if not (self.is_second_order and self.adapted and self.takes_tasks):
            return False
        is_descent = self.config.inner_optimizer == "sgd" and not self.learns_rates
        return is_descent and not is_batched(next(self.network.parameters()).device)

    @property
    def copies(self) -> int:
        """See `Algorithm`."""
        steps = self.config.inner_steps
        if self.is_second_order:
            return most_states(steps) if self.config.recompute else steps
        if not self.learns_rates:
            return 1
        return 1 + (steps if self._has_rates_by_step else 1)

    @property
    def _has_rates_by_step(self) -> bool:
        return self.config.inner_rates != "fixed"

    @classmethod
    def learned(cls, network: Any, config: Any) -> Parameters:
        """Rates by parameter tensor and step, where `inner_rates` asks for them: (tensors * steps,)."""
        if config.inner_rates == "fixed":
            return {}
        names = _rated(network.adapted_names(config.adapt, config.last_k))
        return {"inner_lr": torch.full((len(names) * config.inner_steps,), config.inner_lr)}

    def start_head(self, parameters: Parameters, support: Any, labels: Tensor, n_way: int) -> Parameters:
        """The head before the first step, as a function of the parameters; {} where scores are the features.

        (n_way, hidden_size) and (n_way,), behind a dimension of tasks where there are several.
        """
        if not self.zero_head:
            return {}
        shape = (*_tasks(support), n_way, self.network.hidden_size)
        return zero_head(shape, next(iter(parameters.values())))

    def rate(self, parameters: Parameters) -> Rate:
        """How fast each weight learns."""
        learned = parameters.get("learned.inner_lr")
        if learned is None:
            return lambda name, step: float(self.config.inner_lr)
        rows = {name: row for row, name in enumerate(_rated(self.adapted))}
        table = learned.view(len(rows), self.config.inner_steps)
        # Later steps, which an evaluation may take, go on at the last rate.
        return lambda name, step: table[rows[name], min(step, self.config.inner_steps - 1)]

    def step_weights(self, progress: float) -> list[float]:
        """How much the query loss after each inner step counts.

        MAML++ (Antoniou et al. 2019, https://arxiv.org/abs/1810.09502, section 4): all alike at the beginning, then
        ever more the last one, alone from the share `multi_step_loss` of the outer steps on.
        """
        steps = self.config.inner_steps
        left = max(0.0, 1 - progress / self.config.multi_step_loss) if self.config.multi_step_loss else 0.0
        weights = [left / steps] * steps
        weights[-1] = 1 - left * (steps - 1) / steps
        return weights

    def task_gradient(self, parameters: Parameters, task: TaskBatch, progress: float = 1.0) -> TaskResult:
        """See `Algorithm`."""
        prepared = self.prepared(parameters, task)
        return self.outcome(prepared, self.step_weights(progress)).read(prepared.of_rows, prepared.rows)

    def prepared(self, parameters: Parameters, task: TaskBatch, least_rows: int = 0) -> Prepared:
        """All that is done for a task which a recording cannot hold: what asks for ids and lengths.

        `least_rows`: see `Network.localized`.
        """
        batches = [task.support, task.query]
        local = self._localized(parameters, batches, least_rows)
        task = replace(task, support=local.batches[0], query=local.batches[1])
        both = concatenate(task.support, task.query) if self.joins_halves else None
        if self.keeps_aside and not _tasks(task.support):
            task = join([task])
        return Prepared(local.parameters, task, both, local.embedding, local.rows, local.of_rows)

    def outcome(self, prepared: Prepared, weights: Sequence[float]) -> Outcome:
        """What a task gives, with weights as of `step_weights`; which launches it takes is a matter of sizes alone."""
        theta = {
            name: value.detach().requires_grad_(name in self.trained or (self.is_second_order and name in self.adapted))
            for name, value in prepared.parameters.items()
        }
        if not self.is_second_order:
            return self._first_order(theta, prepared.task, weights, prepared.embedding)
        if self.config.recompute:
            return recomputed(self, theta, prepared.task, weights, prepared.embedding)
        return self._second_order(theta, prepared, weights)

    def fit(self, parameters: Parameters, support: Any, labels: Tensor, n_way: int, inner_steps: int) -> Classifier:
        """See `Algorithm`. First order: no graph outlives an inner step."""
        local = self._localized({name: value.detach() for name, value in parameters.items()}, [support])
        (support,) = local.batches
        with torch.no_grad():
            head = self.start_head(local.parameters, support, labels, n_way)
        problem = self.problem(local.parameters, support, labels)
        fast = start = self.start(local.parameters, head, support, local.embedding)
        for fast in inner_loop(problem, start, inner_steps):  # noqa: B007  # the last one is wanted, and none is kept
            pass
        adapted = {**parameters, **fast.body}
        if local.embedding in fast.body:
            adapted[local.embedding] = parameters[local.embedding].detach().clone()
            adapted[local.embedding][local.rows] = fast.body[local.embedding].detach()

        @torch.no_grad()
        def classify(query: Any) -> Tensor:
            return scores_of(self.network.features(adapted, query), fast.head)

        return classify

    def _localized(self, parameters: Parameters, batches: list[Any], least_rows: int = 0) -> Localized:
        return self.network.localized(parameters, batches, least_rows)

    def problem(self, parameters: Parameters, support: Any, labels: Tensor) -> Problem:
        """What the inner loop minimises on a support set; `parameters` stand for all that does not move."""
        return Problem(
            self.network,
            parameters,
            support,
            labels,
            self.criterion,
            self.config,
            self.rate(parameters),
            head_is_zero=self.zero_head and self.starts_at_chance,
        )

    def start(self, parameters: Parameters, head: Parameters, support: Any, own_rows: str | None) -> Fast:
        """The fast weights before the first step. Of `own_rows`, the word embedding, each task has rows of its own."""
        tasks = _tasks(support)
        body = {name: parameters[name] for name in self.adapted}
        return Fast({n: v if n == own_rows or not tasks else v.expand(*tasks, *v.shape) for n, v in body.items()}, head)

    def begun(self, problem: Problem, body: Parameters, own_rows: str | None, like: Parameters) -> dict[str, Adjoint]:
        """Begins to keep aside what linear layers find of the derivatives by fast weights, in the shapes of `like`."""
        if not self.keeps_aside:
            return {}
        return {n: begin(v, like[n].shape) for n, v in body.items() if v.ndim == 3 and n != own_rows}

    def query(self, theta: Parameters, fast: Fast, task: TaskBatch) -> tuple[Tensor, Tensor]:
        """The loss of the query set, and its scores."""
        features = self.network.features({**theta, **fast.body}, task.query)
        return self._query_loss(features, fast, task)

    def _query_loss(self, features: Tensor, fast: Fast, task: TaskBatch) -> tuple[Tensor, Tensor]:
        scores = scores_of(features, fast.head, task.query_sizes)
        return total_loss(self.criterion, scores, task.query_labels, task.query_sizes), scores

    def _first_order(
        self, theta: Parameters, task: TaskBatch, weights: Sequence[float], own_rows: str | None
    ) -> Outcome:
        head = self.start_head(theta, task.support, task.support_labels, task.n_way)
        fixed = {name: value.detach() for name, value in theta.items()}
        problem = self.problem(fixed, task.support, task.support_labels)
        directions: list[Parameters] = []
        if self.learns_rates:
            problem.record = partial(self._keep, directions)
        gradients: Parameters = {}
        started = time.perf_counter()
        spent = 0.0
        start = self.start(fixed, head, task.support, own_rows)
        for step, fast in enumerate(inner_loop(problem, start, self.config.inner_steps)):
            spent += time.perf_counter() - started
            if weights[step]:
                fast = Fast(requiring(fast.body), requiring(fast.head))
                if not self.learns_rates:
                    self._send(fast.body, theta, gradients, weights[step])
                loss, scores = self.query(theta, fast, task)
                at_phi = gradients_of(loss, {**theta, **fast.all})
                self._add_at_start(gradients, at_phi, theta, head, directions, weights[step])
            started = time.perf_counter()
        kept = {name: gradient for name, gradient in gradients.items() if name in self.trained}
        return problem.outcome(kept, loss, scores, task, spent)

    def _keep(self, directions: list[Parameters], moves: Parameters) -> None:
        """Keeps what the rates of a step multiply; of steps with the same rates the sum."""
        if directions and not self._has_rates_by_step:
            accumulate(directions[0], moves)
        else:
            directions.append(dict(moves))

    def _send(self, body: Parameters, theta: Parameters, gradients: Parameters, factor: float) -> None:
        """Has the gradients at phi of several tasks added up as they arise."""
        for name, value in body.items():
            if value.ndim > theta[name].ndim:
                if name not in gradients:
                    gradients[name] = torch.zeros_like(theta[name])
                send_gradient(value, gradients[name], factor)

    def _add_at_start(
        self,
        total: Parameters,
        at_phi: Parameters,
        theta: Parameters,
        head: Parameters,
        directions: list[Parameters],
        weight: float,
    ) -> None:
        """Adds the gradient at phi_k as that at phi_0: of the head to what the head starts from, and of the rates."""
        outputs: list[Tensor] = []
        cotangents: list[Tensor] = []
        for name, gradient in at_phi.items():
            if name in head:
                if head[name].requires_grad:
                    outputs.append(head[name])
                    cotangents.append(gradient)
            else:
                accumulate(total, {name: summed(gradient, theta[name])}, weight)
        rate = self.rate(theta)
        for step, moves in enumerate(directions):
            for name in moves.keys() & at_phi.keys():
                outputs.append(rate(name, step) * moves[name])
                cotangents.append(-at_phi[name])
        if outputs:
            sources = {name: value for name, value in theta.items() if value.requires_grad}
            found = torch.autograd.grad(
                outputs, list(sources.values()), cotangents, retain_graph=True, allow_unused=True
            )
            accumulate(total, {n: g for n, g in zip(sources, found, strict=True) if g is not None}, weight)

    def _second_order(self, theta: Parameters, prepared: Prepared, weights: Sequence[float]) -> Outcome:
        task, own_rows = prepared.task, prepared.embedding
        problem = self.problem(theta, task.support, task.support_labels)
        problem.second_order = True
        total: Tensor = torch.zeros((), device=task.query_labels.device)
        started = time.perf_counter()
        spent = 0.0
        head = self.start_head(theta, task.support, task.support_labels, task.n_way)
        if prepared.both is not None:
            both = self.network.features(theta, prepared.both)
            problem.given, query_features = both.split([len(task.support_labels), len(task.query_labels)])
        # Tensors of their own: a head made from theta is no way from the body to the loss of a step.
        start = self.start({n: v.view_as(v) for n, v in theta.items()}, head, task.support, own_rows)
        adjoints = self.begun(problem, start.body, own_rows, theta)
        for step, fast in enumerate(inner_loop(problem, start, self.config.inner_steps)):
            spent += time.perf_counter() - started
            if weights[step]:
                if problem.given is None:
                    loss, scores = self.query(theta, fast, task)
                else:
                    loss, scores = self._query_loss(query_features, fast, task)
                total = total + weights[step] * loss
            started = time.perf_counter()
        gradients = gradients_of(total, {name: value for name, value in theta.items() if name in self.trained})
        accumulate(gradients, settled({n: each for n, each in adjoints.items() if n in self.trained}))
        return problem.outcome(gradients, loss, scores, task, spent)


def _tasks(support: Any) -> tuple[int, ...]:
    """The dimension of tasks, where there is one."""
    sizes = texts_of_tasks(support)
    return (len(sizes),) if sizes else ()


def _rated(adapted: list[str]) -> list[str]:
    return [*adapted, "head.weight", "head.bias"]
