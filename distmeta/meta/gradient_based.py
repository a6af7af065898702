"""The outer gradient of algorithms that have an inner loop.

With phi(theta) the fast weights after the inner loop on the support set S, from phi_0(theta), and L_Q the loss of phi
on the query set Q, the meta-gradient of a task is d/d theta of L_Q(phi(theta), theta).

First order takes d phi / d phi_0 for the identity (Finn et al. 2017, section 5.2), so that the gradient at phi stands
for that at phi_0. Second order is exact, either by keeping the graph of the whole loop, or, with `recompute`, by going
back through it a step at a time: with v the gradient of L_Q with respect to phi_{k+1},

    v <- (d phi_{k+1} / d phi_k)^T v,    d theta += (d phi_{k+1} / d theta)^T v,

each step computed again with the dropout that it drew, from phi_k, of which few are kept (`distmeta.meta.backwards`).

A task may be several side by side: phi then has a dimension of tasks, and the gradient is the sum of the tasks'.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distmeta.compute.batch import TaskBatch, concatenate, join, texts_of_tasks
from distmeta.compute.destinations import send_gradient
from distmeta.compute.parts import is_batched
from distmeta.compute.twice import Adjoint, begin
from distmeta.meta.algorithm import Algorithm, Classifier, Outcome, Parameters, TaskResult, accuracy
from distmeta.meta.backwards import backwards, most_states
from distmeta.meta.gradients import accumulate, gradients_of, requiring, settled, summed
from distmeta.meta.inner_loop import Fast, Problem, Rate, inner_loop, scores_of, stepped, total_loss, zero_head
from distmeta.meta.inner_optimizer import direction, state_tensors, with_state_tensors
from distmeta.meta.randomness import drawing_again, random_state
from distmeta.models.network import Localized

State = tuple[Fast, dict[str, Any]]
"""The fast weights and the optimizer's state between two steps."""


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
            return self._recomputed(theta, prepared.task, weights, prepared.embedding)
        return self._second_order(theta, prepared, weights)

    def fit(self, parameters: Parameters, support: Any, labels: Tensor, n_way: int, inner_steps: int) -> Classifier:
        """See `Algorithm`. First order: no graph outlives an inner step."""
        local = self._localized({name: value.detach() for name, value in parameters.items()}, [support])
        (support,) = local.batches
        with torch.no_grad():
            head = self.start_head(local.parameters, support, labels, n_way)
        problem = self._problem(local.parameters, support, labels)
        fast = start = self._start(local.parameters, head, support, local.embedding)
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

    def _problem(self, parameters: Parameters, support: Any, labels: Tensor) -> Problem:
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

    def _start(self, parameters: Parameters, head: Parameters, support: Any, own_rows: str | None) -> Fast:
        """The fast weights before the first step. Of `own_rows`, the word embedding, each task has rows of its own."""
        tasks = _tasks(support)
        body = {name: parameters[name] for name in self.adapted}
        return Fast({n: v if n == own_rows or not tasks else v.expand(*tasks, *v.shape) for n, v in body.items()}, head)

    def _begun(self, problem: Problem, body: Parameters, own_rows: str | None, like: Parameters) -> dict[str, Adjoint]:
        """Begins to keep aside what linear layers find of the derivatives by fast weights, in the shapes of `like`."""
        if not self.keeps_aside:
            return {}
        return {n: begin(v, like[n].shape) for n, v in body.items() if v.ndim == 3 and n != own_rows}

    def _query(self, theta: Parameters, fast: Fast, task: TaskBatch) -> tuple[Tensor, Tensor]:
        features = self.network.features({**theta, **fast.body}, task.query)
        return self._query_loss(features, fast, task)

    def _query_loss(self, features: Tensor, fast: Fast, task: TaskBatch) -> tuple[Tensor, Tensor]:
        """The loss, and the scores."""
        scores = scores_of(features, fast.head, task.query_sizes)
        return total_loss(self.criterion, scores, task.query_labels, task.query_sizes), scores

    def _first_order(
        self, theta: Parameters, task: TaskBatch, weights: Sequence[float], own_rows: str | None
    ) -> Outcome:
        head = self.start_head(theta, task.support, task.support_labels, task.n_way)
        fixed = {name: value.detach() for name, value in theta.items()}
        problem = self._problem(fixed, task.support, task.support_labels)
        directions: list[Parameters] = []
        if self.learns_rates:
            problem.record = partial(self._keep, directions)
        gradients: Parameters = {}
        started = time.perf_counter()
        spent = 0.0
        start = self._start(fixed, head, task.support, own_rows)
        for step, fast in enumerate(inner_loop(problem, start, self.config.inner_steps)):
            spent += time.perf_counter() - started
            if weights[step]:
                fast = Fast(requiring(fast.body), requiring(fast.head))
                if not self.learns_rates:
                    self._send(fast.body, theta, gradients, weights[step])
                loss, scores = self._query(theta, fast, task)
                at_phi = gradients_of(loss, {**theta, **fast.all})
                self._add_at_start(gradients, at_phi, theta, head, directions, weights[step])
            started = time.perf_counter()
        kept = {name: gradient for name, gradient in gradients.items() if name in self.trained}
        return self._outcome(kept, loss, scores, task, problem, spent)

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
        problem = self._problem(theta, task.support, task.support_labels)
        problem.second_order = True
        total: Tensor = torch.zeros((), device=task.query_labels.device)
        started = time.perf_counter()
        spent = 0.0
        head = self.start_head(theta, task.support, task.support_labels, task.n_way)
        if prepared.both is not None:
            both = self.network.features(theta, prepared.both)
            problem.given, query_features = both.split([len(task.support_labels), len(task.query_labels)])
        # Tensors of their own: a head made from theta is no way from the body to the loss of a step.
        start = self._start({n: v.view_as(v) for n, v in theta.items()}, head, task.support, own_rows)
        adjoints = self._begun(problem, start.body, own_rows, theta)
        for step, fast in enumerate(inner_loop(problem, start, self.config.inner_steps)):
            spent += time.perf_counter() - started
            if weights[step]:
                if problem.given is None:
                    loss, scores = self._query(theta, fast, task)
                else:
                    loss, scores = self._query_loss(query_features, fast, task)
                total = total + weights[step] * loss
            started = time.perf_counter()
        gradients = gradients_of(total, {name: value for name, value in theta.items() if name in self.trained})
        accumulate(gradients, settled({n: each for n, each in adjoints.items() if n in self.trained}))
        return self._outcome(gradients, loss, scores, task, problem, spent)

    def _recomputed(
        self, theta: Parameters, task: TaskBatch, weights: Sequence[float], own_rows: str | None
    ) -> Outcome:
        fixed = {name: value.detach() for name, value in theta.items()}
        head = self.start_head(theta, task.support, task.support_labels, task.n_way)
        problem = self._problem(fixed, task.support, task.support_labels)
        first: State = (self._start(fixed, {n: v.detach() for n, v in head.items()}, task.support, own_rows), {})
        device = task.support_labels.device
        drawn: list[Any] = []
        spent = 0.0

        def advance(before: State, step: int) -> State:
            nonlocal spent
            if step < len(drawn):
                with drawing_again(device, drawn[step]):
                    return self._one_step(problem, fixed, *before, step, graph=False)
            drawn.append(random_state(device))
            started = time.perf_counter()
            after = self._one_step(problem, fixed, *before, step, graph=False)
            spent += time.perf_counter() - started
            return after

        gradients: Parameters = {}
        back: Parameters = {}  # of the fast weights
        back_state: Parameters = {}  # of the optimizer's state
        for step, (before, state), (after, _) in backwards(first, self.config.inner_steps, advance):
            if weights[step]:
                fast = Fast(requiring(after.body), requiring(after.head))
                adjoints = self._begun(problem, fast.body, own_rows, fast.body)
                query_loss, query_scores = self._query(theta, fast, task)
                if step == self.config.inner_steps - 1:
                    loss, scores = query_loss.detach(), query_scores.detach()
                found = gradients_of(query_loss, {**theta, **fast.all})
                accumulate(found, settled(adjoints))
                accumulate(back, {n: g for n, g in found.items() if n in fast.all}, weights[step])
                accumulate(gradients, {n: g for n, g in found.items() if n not in fast.all}, weights[step])
            leaves = Fast(requiring(before.body), requiring(before.head))
            adjoints = self._begun(problem, leaves.body, own_rows, leaves.body)
            state_leaves = {name: value.requires_grad_() for name, value in state_tensors(state).items()}
            with drawing_again(device, drawn[step]):
                moved, moved_state = self._one_step(
                    problem, theta, leaves, with_state_tensors(state, state_leaves), step, graph=True
                )
            outputs = moved.all | state_tensors(moved_state)
            cotangents = back | back_state
            wanted = {name: value for name, value in outputs.items() if name in cotangents and value.requires_grad}
            inputs = {f"theta:{n}": v for n, v in theta.items() if v.requires_grad} | leaves.all | state_leaves
            found = gradients_of(list(wanted.values()), inputs, [cotangents[name] for name in wanted])
            accumulate(found, settled(adjoints))
            accumulate(gradients, {n.removeprefix("theta:"): g for n, g in found.items() if n.startswith("theta:")})
            back = {name: gradient for name, gradient in found.items() if name in leaves.all}
            back_state = {name: gradient for name, gradient in found.items() if name in state_leaves}
        del problem.losses[self.config.inner_steps :]  # of steps that were computed again
        accumulate(gradients, {n: summed(g, theta[n]) for n, g in back.items() if n in theta})
        starts = {name: value for name, value in head.items() if value.requires_grad and name in back}
        if starts:
            sources = {name: value for name, value in theta.items() if value.requires_grad}
            accumulate(gradients, gradients_of(list(starts.values()), sources, [back[name] for name in starts]))
        trained = {name: gradient for name, gradient in gradients.items() if name in self.trained}
        return self._outcome(trained, loss, scores, task, problem, spent)

    def _one_step(
        self, problem: Problem, theta: Parameters, fast: Fast, state: Mapping[str, Any], step: int, *, graph: bool
    ) -> State:
        """phi_{k+1} from phi_k; with its graph back to the fast weights, the state and theta, or without any."""
        if not graph:
            fast = Fast(requiring(fast.body), requiring(fast.head))
        problem.expect(fast.body, step)
        features = self.network.features({**theta, **fast.body}, problem.support)
        scores = scores_of(features, fast.head, problem.texts_per_task)
        loss = total_loss(self.criterion, scores, problem.labels, problem.texts_per_task)
        if not graph:
            problem.losses.append(loss.detach())
        found = torch.autograd.grad(
            loss, list(fast.all.values()), create_graph=graph, allow_unused=True, materialize_grads=True
        )
        moves, after_state = direction(dict(zip(fast.all, found, strict=True)), dict(state), self.config)
        rate = self.rate(theta)
        moved = {name: stepped(value, moves[name], rate(name, step)) for name, value in fast.all.items()}
        if not graph:
            moved = {name: value.detach() for name, value in moved.items()}
        return Fast({n: moved[n] for n in fast.body}, {n: moved[n] for n in fast.head}), after_state

    def _outcome(
        self,
        gradients: Parameters,
        loss: Tensor,
        scores: Tensor,
        task: TaskBatch,
        problem: Problem,
        inner_seconds: float,
    ) -> Outcome:
        before = None
        if problem.head_is_zero:
            # A head of zeros gives every class the same score, and the argmax of equal scores is the first class.
            before = accuracy(torch.zeros_like(scores), task.query_labels, task.query_sizes)
        found = accuracy(scores, task.query_labels, task.query_sizes)
        return Outcome(gradients, loss, found, before, problem.losses, inner_seconds)


def _tasks(support: Any) -> tuple[int, ...]:
    """The dimension of tasks, where there is one."""
    sizes = texts_of_tasks(support)
    return (len(sizes),) if sizes else ()


def _rated(adapted: list[str]) -> list[str]:
    return [*adapted, "head.weight", "head.bias"]
