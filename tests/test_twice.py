"""Derivatives through descended weights that are added up in place, against autograd's own."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distmeta.compute import by_task, twice
from distmeta.compute.parts import Parts

PARTS = Parts((3, 5))
RATE = 0.1

Pass = Callable[[Tensor, Tensor, Tensor, Callable[..., Tensor]], Tensor]
"""The output of a network with a weight, a bias and inputs, and with a linear layer to use."""


def once(weight: Tensor, bias: Tensor, rows: Tensor, linear: Callable[..., Tensor]) -> Tensor:
    return linear(rows.tanh(), weight, bias).sigmoid()


def without_bias(weight: Tensor, bias: Tensor, rows: Tensor, linear: Callable[..., Tensor]) -> Tensor:
    return linear(rows, weight, None).sigmoid()


def one_after_the_other(weight: Tensor, bias: Tensor, rows: Tensor, linear: Callable[..., Tensor]) -> Tensor:
    return linear(linear(rows, weight, bias).tanh(), weight, None).sigmoid()


def elsewhere_too(weight: Tensor, bias: Tensor, rows: Tensor, linear: Callable[..., Tensor]) -> Tensor:
    return linear(rows, weight, bias).sigmoid() * (1 + weight.square().sum())


def not_at_all(weight: Tensor, bias: Tensor, rows: Tensor, linear: Callable[..., Tensor]) -> Tensor:
    return (rows * bias.sum() + weight.sum()).sigmoid()


def derivatives(network: Pass, *, turned: bool, aside: bool, every_step: bool) -> list[Tensor]:
    """Of losses after three steps of descent, by where the weight, the bias and the inputs start."""
    generator = torch.Generator().manual_seed(0)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    start, first_bias, rows = new(4, 4), new(4), new(8, 4)
    queries = [new(8, 4) for _ in range(3)]
    weight, bias = start.expand(2, 4, 4), first_bias.expand(2, 4)
    adjoint = twice.begin(weight, start.shape) if aside else None

    def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if aside:
            return by_task.linear(rows, weight, bias, PARTS, turned=turned)
        pieces = zip(PARTS.split(rows), weight, [None, None] if bias is None else bias, strict=True)
        return torch.cat([functional.linear(x, w.t() if turned else w, b) for x, w, b in pieces])

    total = torch.zeros((), dtype=torch.float64)
    for step, query in enumerate(queries):
        twice.expect(weight, -RATE)
        loss = network(weight, bias, rows, linear).square().sum()
        moves = torch.autograd.grad(loss, [weight, bias], create_graph=True, allow_unused=True, materialize_grads=True)
        weight = twice.moved(weight, moves[0], -RATE) if aside else weight - RATE * moves[0]
        bias = bias - RATE * moves[1]
        if every_step or step == len(queries) - 1:
            total = total + network(weight, bias, query, linear).square().sum()
    found = torch.autograd.grad(
        total, [start, first_bias, rows, queries[-1]], allow_unused=True, materialize_grads=True
    )
    kept = adjoint.result() if adjoint is not None else None
    return [found[0] if kept is None else found[0] + kept, *found[1:]]


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("network", [once, without_bias, one_after_the_other, elsewhere_too, not_at_all])
def test_what_is_added_up_aside_is_the_derivative(network: Pass, turned: bool, every_step: bool) -> None:
    expected = derivatives(network, turned=turned, aside=False, every_step=every_step)
    found = derivatives(network, turned=turned, aside=True, every_step=every_step)
    for each, other in zip(found, expected, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("is_last_read", [True, False])
def test_layers_that_read_the_same_rows_are_as_each_alone(is_last_read: bool) -> None:
    """With a bias and without; the second one's output is not read by the query loss in one case."""

    def derivatives(linears: Callable[..., Sequence[Tensor]], *, aside: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        starts = [torch.randn(4, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
        first_bias, rows = (
            torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in ((4,), (8, 4))
        )
        weights, bias = [start.expand(2, 4, 4) for start in starts], first_bias.expand(2, 4)
        adjoints = [twice.begin(weight, weight.shape[1:]) for weight in weights] if aside else []
        for _ in range(3):
            for weight in weights:
                twice.expect(weight, -RATE)
            one, other = linears(rows.tanh(), weights, [bias, None], PARTS)
            loss = (one.sigmoid() * other.tanh()).square().sum()
            moves = torch.autograd.grad(loss, [*weights, bias], create_graph=True)
            weights = [twice.moved(weight, move, -RATE) for weight, move in zip(weights, moves[:2], strict=True)]
            bias = bias - RATE * moves[2]
        one, other = linears(rows, weights, [bias, None], PARTS)
        total = (one * other.cos() if is_last_read else one).square().sum()
        by = [*starts, first_bias, rows]
        found = torch.autograd.grad(total, by, allow_unused=True, materialize_grads=True)
        kept = [adjoint.result() for adjoint in adjoints] or [0, 0]
        return [each + aside for each, aside in zip(found, [*kept, 0, 0], strict=True)]

    def alone(rows: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], parts: Parts) -> list[Tensor]:
        return [
            torch.cat([functional.linear(x, *own) for x, *own in zip(parts.split(rows), weight, bias, strict=True)])
            for weight, bias in zip(weights, [biases[0], [None, None]], strict=True)
        ]

    pairs = zip(derivatives(by_task.linears, aside=True), derivatives(alone, aside=False), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_layers_that_read_the_same_rows_with_a_bias_that_all_tasks_share() -> None:
    rows, bias = torch.randn(8, 4), torch.randn(4)
    weights = [torch.randn(2, 4, 4, requires_grad=True) for _ in range(2)]
    for weight in weights:
        twice.begin(weight, weight.shape)
    for found, weight in zip(by_task.linears(rows, weights, [bias, bias], PARTS), weights, strict=True):
        parts = zip(PARTS.split(rows), weight, strict=True)
        torch.testing.assert_close(found, torch.cat([functional.linear(x, own, bias) for x, own in parts]))


def test_a_layer_that_reads_other_rows_than_those_beside_it_gets_what_it_makes_of_its_own() -> None:
    layers = [nn.Linear(4, 4) for _ in range(3)]
    for layer in layers:
        layer.weight, layer.bias = nn.Parameter(torch.randn(2, 4, 4)), nn.Parameter(torch.randn(2, 4))
    together = by_task._Together(layers, PARTS)
    first, other = torch.randn(2, 1, 8, 4)
    for layer, row in zip(layers, (first, other, first), strict=True):
        expected = by_task.linear(row.squeeze(0), layer.weight, layer.bias, PARTS).unsqueeze(0)
        torch.testing.assert_close(together(layer, row), expected)


def test_no_gradient_of_a_weight_that_is_used_once_is_made() -> None:
    """The product that would make it makes the weight after the step."""
    weight = torch.randn(2, 4, 4, requires_grad=True)
    adjoint = twice.begin(weight, weight.shape)
    by_task.linear(torch.randn(8, 4), weight, None, PARTS)  # which is not the pass that moves it
    twice.expect(weight, -RATE)
    loss = by_task.linear(torch.randn(8, 4), weight, None, PARTS).square().sum()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    assert gradient.stride() == (0, 0, 0)
    assert adjoint.moved is not None
    after = twice.moved(weight, gradient, -RATE)
    assert after.data_ptr() != weight.data_ptr()
    assert not torch.equal(after, weight)


def test_nothing_is_added_before_what_is_there_has_been_read() -> None:
    """A tensor goes from step to step, and is added to: whoever has to read it as it came reads it first."""
    adjoint = twice.Adjoint(torch.Size((2, 4, 4)))
    value = torch.ones(2, 4, 4)
    adjoint.unread = 1
    adjoint.receive(value)
    adjoint.add(torch.ones(8, 4), torch.ones(8, 4), PARTS)
    adjoint.settle()
    assert value.eq(1).all()
    assert adjoint.result() is value
    assert value[0].eq(1 + 3).all()
    assert value[1].eq(1 + 5).all()
