"""The meta-gradient of second order, back through the inner loop a step at a time: `meta.recompute`.

With v the gradient of the query loss L_Q with respect to the fast weights phi_{k+1},

    v <- (d phi_{k+1} / d phi_k)^T v,    d theta += (d phi_{k+1} / d theta)^T v,

each step computed again with the dropout that it drew, from phi_k, of which few are kept (`distmeta.meta.backwards`).
So no more than the graph of one step is held, and the result is that of the graph of the whole loop.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from distmeta.compute.batch import TaskBatch
from distmeta.meta.algorithm import Outcome, Parameters
from distmeta.meta.backwards import backwards
from distmeta.meta.gradients import accumulate, gradients_of, requiring, settled, summed
from distmeta.meta.inner_loop import Fast, Problem, scores_of, stepped, total_loss
from distmeta.meta.inner_optimizer import direction, state_tensors, with_state_tensors
from distmeta.meta.randomness import drawing_again, random_state

if TYPE_CHECKING:
    from distmeta.meta.gradient_based import GradientBased

State = tuple[Fast, dict[str, Any]]
"""The fast weights and the optimizer's state between two steps."""


def recomputed(
    algorithm: "GradientBased", theta: Parameters, task: TaskBatch, weights: Sequence[float], own_rows: str | None
) -> Outcome:
    """What a task gives.

    Args:
        algorithm: says where the fast weights start, and how fast each learns.
        theta: the parameters, with those that ask for a gradient.
        task: one task, or several side by side.
        weights: how much the query loss after each inner step counts.
        own_rows: the parameter that holds rows of the word embedding for this task alone.
    """
    steps = algorithm.config.inner_steps
    fixed = {name: value.detach() for name, value in theta.items()}
    head = algorithm.start_head(theta, task.support, task.support_labels, task.n_way)
    problem = algorithm.problem(fixed, task.support, task.support_labels)
    first: State = (algorithm.start(fixed, {n: v.detach() for n, v in head.items()}, task.support, own_rows), {})
    device = task.support_labels.device
    drawn: list[Any] = []
    spent = 0.0

    def advance(before: State, step: int) -> State:
        nonlocal spent
        if step < len(drawn):
            with drawing_again(device, drawn[step]):
                return _one_step(algorithm, problem, fixed, *before, step, graph=False)
        drawn.append(random_state(device))
        started = time.perf_counter()
        after = _one_step(algorithm, problem, fixed, *before, step, graph=False)
        spent += time.perf_counter() - started
        return after

    gradients: Parameters = {}
    back: Parameters = {}  # of the fast weights
    back_state: Parameters = {}  # of the optimizer's state
    for step, (before, state), (after, _) in backwards(first, steps, advance):
        if weights[step]:
            fast = Fast(requiring(after.body), requiring(after.head))
            adjoints = algorithm.begun(problem, fast.body, own_rows, fast.body)
            query_loss, query_scores = algorithm.query(theta, fast, task)
            if step == steps - 1:
                loss, scores = query_loss.detach(), query_scores.detach()
            found = gradients_of(query_loss, {**theta, **fast.all})
            accumulate(found, settled(adjoints))
            accumulate(back, {n: g for n, g in found.items() if n in fast.all}, weights[step])
            accumulate(gradients, {n: g for n, g in found.items() if n not in fast.all}, weights[step])
        leaves = Fast(requiring(before.body), requiring(before.head))
        adjoints = algorithm.begun(problem, leaves.body, own_rows, leaves.body)
        state_leaves = {name: value.requires_grad_() for name, value in state_tensors(state).items()}
        with drawing_again(device, drawn[step]):
            moved, moved_state = _one_step(
                algorithm, problem, theta, leaves, with_state_tensors(state, state_leaves), step, graph=True
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
    del problem.losses[steps:]  # of steps that were computed again
    accumulate(gradients, {n: summed(g, theta[n]) for n, g in back.items() if n in theta})
    starts = {name: value for name, value in head.items() if value.requires_grad and name in back}
    if starts:
        sources = {name: value for name, value in theta.items() if value.requires_grad}
        accumulate(gradients, gradients_of(list(starts.values()), sources, [back[name] for name in starts]))
    trained = {name: gradient for name, gradient in gradients.items() if name in algorithm.trained}
    return problem.outcome(trained, loss, scores, task, spent)


def _one_step(
    algorithm: "GradientBased",
    problem: Problem,
    theta: Parameters,
    fast: Fast,
    state: Mapping[str, Any],
    step: int,
    *,
    graph: bool,
) -> State:
    """phi_{k+1} from phi_k; with its graph back to the fast weights, the state and theta, or without any."""
    if not graph:
        fast = Fast(requiring(fast.body), requiring(fast.head))
    problem.expect(fast.body, step)
    features = problem.network.features({**theta, **fast.body}, problem.support)
    scores = scores_of(features, fast.head, problem.texts_per_task)
    loss = total_loss(problem.criterion, scores, problem.labels, problem.texts_per_task)
    if not graph:
        problem.losses.append(loss.detach())
    found = torch.autograd.grad(
        loss, list(fast.all.values()), create_graph=graph, allow_unused=True, materialize_grads=True
    )
    moves, after_state = direction(dict(zip(fast.all, found, strict=True)), dict(state), problem.config)
    rate = algorithm.rate(theta)
    moved = {name: stepped(value, moves[name], rate(name, step)) for name, value in fast.all.items()}
    if not graph:
        moved = {name: value.detach() for name, value in moved.items()}
    return Fast({n: moved[n] for n in fast.body}, {n: moved[n] for n in fast.head}), after_state
