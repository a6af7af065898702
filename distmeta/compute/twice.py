"""Weights by task that inner steps move, where the moves are differentiated too (second order).

On the way back a weight W_k gets something from each of four products: those of the pass that made its gradient and of
that pass' own way back, and what comes through the step W_{k+1} = W_k - rate * gradient as it is. Autograd would make
each a tensor as large as the weight, and add them up. Here one tensor goes back through the steps (`Adjoint`), to
which the products add; and the step is made by the very product that would have made the gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distmeta.compute.destinations import add_product, is_counted
from distmeta.compute.parts import Parts


class Adjoint:
    """The derivative of the loss by a weight (tasks, ...), in so far as linear layers find it.

    Args:
        shape: that of the weight, or without its dimension of tasks for the sum over them.
    """

    def __init__(self, shape: torch.Size) -> None:
        self._shape = shape
        self._total: Tensor | None = None
        self._terms: list[tuple[Tensor, Tensor, Parts]] = []
        self.unread = 0
        """How many layers have yet to read the derivative by the weight after the step: it becomes this very tensor."""
        self.factor = 1.0
        """What the gradient is multiplied with for the step."""
        self.uses = 0
        """How many layers used the weight since the step was expected; 0: nothing is expected."""
        self.moved: Tensor | None = None
        """The weight after the step, where the product that makes the gradient made it."""

    def expect(self, factor: float) -> None:
        """To be called before the pass whose gradient, times `factor`, moves the weight."""
        self.factor, self.uses = factor, 0

    def receive(self, after: Tensor) -> None:
        """Adds the derivative by the weight after the step, and may keep that tensor for itself."""
        value = after if after.shape == self._shape else after.sum(0)
        self._total = value if self._total is None else self._total.add_(value)

    def add(self, left: Tensor, right: Tensor, parts: Parts) -> None:
        """Adds left^T right, task by task; at once, or with what is added next."""
        self._terms.append((left, right, parts))

    def result(self) -> Tensor | None:
        """All that has been found, once nobody has anything to read or to add any more."""
        self.unread = 0
        self.settle()
        return self._total

    @torch.no_grad()
    def settle(self) -> None:
        """Computes what has been added, unless that has to wait."""
        if self.unread or not self._terms:
            return
        terms = [
            (parts.split(left), parts.split(right)) if len(self._shape) > 2 else ((left,), (right,))
            for left, right, parts in self._terms
        ]
        self._terms.clear()
        is_first = self._total is None
        if self._total is None:
            self._total = terms[0][0][0].new_empty(
                self._shape, dtype=torch.promote_types(terms[0][0][0].dtype, torch.float32)
            )
        for task, place in enumerate(self._total.view(-1, *self._shape[-2:])):
            source = None if is_first else place
            for lefts, rights in terms:
                add_product(place, lefts[task].t(), rights[task], source=source)
                source = place


def begin(weight: Tensor, shape: torch.Size) -> Adjoint:
    """Keeps what linear layers find of the derivative by a weight (tasks, ...); the rest comes as ever."""
    weight._adjoint = Adjoint(shape)  # type: ignore[attr-defined]
    return weight._adjoint  # type: ignore[attr-defined]


def expect(weight: Tensor, factor: float) -> None:
    """To be called before a pass whose gradient, times `factor`, is going to be added to the weight by `moved`."""
    if hasattr(weight, "_adjoint"):
        weight._adjoint.expect(factor)


def moved(weight: Tensor, gradient: Tensor, factor: float) -> Tensor:
    """weight + factor * gradient."""
    adjoint: Adjoint | None = getattr(weight, "_adjoint", None)
    if adjoint is None or not adjoint.uses:
        return torch.add(weight, gradient, alpha=factor)
    after: Tensor = _Move.apply(weight, gradient, adjoint, factor)
    return after


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradient: Tensor, adjoint: Adjoint, factor: float) -> Tensor:
        ctx.set_materialize_grads(False)
        after, adjoint.moved = adjoint.moved, None
        ctx.is_whole = after is not None and not any(gradient.stride())  # nothing was added to the stand-in
        if after is None:
            after = torch.add(weight, gradient, alpha=factor)
        elif not ctx.is_whole:
            after.add_(gradient, alpha=factor)
        ctx.before, ctx.after, ctx.factor = adjoint, begin(after, after.shape), factor
        adjoint.factor = factor if ctx.is_whole else 1.0
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is not None:
            ctx.after.receive(gradient)
        value = ctx.after.result()
        if value is None:
            return None, None, None, None
        # The layer multiplies by the factor where it is the only one that reads this.
        read = value if ctx.is_whole else ctx.factor * value
        ctx.before.receive(value)
        return None, read, None, None


def serves(weights: Sequence[Tensor]) -> bool:
    """Whether `linears` is what takes these weights."""
    return torch.is_grad_enabled() and all(hasattr(weight, "_adjoint") for weight in weights)


def linears(
    rows: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    parts: Parts,
    *,
    turned: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """`distmeta.compute.by_task.linear` of the same rows with each of some weights, which have an adjoint.

    Together they go back to the rows in one tensor, to which each adds.
    """
    layers = [_Layer(parts, weight, bias, turned, dtype) for weight, bias in zip(weights, biases, strict=True)]
    for layer in layers:
        layer.adjoint.uses += is_counted()
    out: tuple[Tensor, ...] = _Linears.apply(rows, layers, *weights, *biases)
    return out


class _Layer:
    """A linear layer: what the passes through it share."""

    def __init__(self, parts: Parts, weight: Tensor, bias: Tensor | None, turned: bool, dtype: torch.dtype) -> None:
        self.parts, self.turned, self.dtype = parts, turned, dtype
        self.adjoint: Adjoint = weight._adjoint  # type: ignore[attr-defined]
        self.has_bias = bias is not None

    def matrices(self, weight: Tensor, *, there: bool) -> list[Tensor]:
        """Of each task, what rows are multiplied with there (in, out) or on the way back (out, in)."""
        if not weight.stride(0):
            weight = weight[:1]  # of all tasks
        weight = weight.to(self.dtype)
        return list((weight if self.turned == there else weight.transpose(1, 2)).unbind())

    def multiply(self, rows: Tensor, matrices: list[Tensor], out: Tensor, *, adds: bool) -> None:
        """Adds to `out`, or writes there, each task's rows times its matrix."""
        pieces = [(rows,), (out,)] if len(matrices) == 1 else [self.parts.split(rows), self.parts.split(out)]
        for x, y, matrix in zip(*pieces, matrices, strict=True):
            torch.addmm(y, x, matrix, beta=adds, out=y)

    def pair(self, rows: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """What makes the gradient of the weight, left^T right."""
        return (rows, gradient) if self.turned else (gradient, rows)

    def of_bias(self, gradient: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The gradient of the bias."""
        return self.parts.sums(gradient).to(dtype) if self.has_bias else None

    def forward(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output."""
        matrices = self.matrices(weight, there=True)
        if bias is None:
            out = rows.new_empty(len(rows), matrices[0].shape[1])
        else:
            out = self.parts.spread(bias.to(self.dtype))
        self.multiply(rows, matrices, out, adds=bias is not None)
        return out

    def backward(self, rows: Tensor, gradient: Tensor, weight: Tensor, before: Tensor, *, adds: bool) -> Tensor:
        """Adds to `before`, or writes there, what goes back to the rows; returns the gradient of the weight."""
        self.adjoint.unread += 1
        is_only = self.adjoint.uses == 1
        made = torch.empty_like(weight, memory_format=torch.contiguous_format)
        matrices = self.matrices(weight, there=False)
        if len(matrices) == 1:
            self.multiply(gradient, matrices, before, adds=adds)
        left, right = self.pair(rows, gradient)
        pieces = zip(*map(self.parts.split, (gradient, before, left, right)), weight, made, strict=True)
        for task, (g, to_before, a, b, own, to_weight) in enumerate(pieces):
            if len(matrices) > 1:
                torch.addmm(to_before, g, matrices[task], beta=adds, out=to_before)
            # At once, while the weight is in the cache.
            source, factor = (own, self.adjoint.factor) if is_only else (None, 1.0)
            add_product(to_weight, a.t(), b, source=source, factor=factor)
        if not is_only:
            return made
        # Nobody needs the gradient, but something has to stand for it on the way back.
        self.adjoint.moved = made
        return weight.new_zeros(()).expand(weight.shape)

    def backward_of_backward(
        self,
        rows: Tensor,
        gradient: Tensor,
        weight: Tensor,
        of_before: Tensor | None,
        of_weight: Tensor | None,
        of_bias: Tensor | None,
        of_rows: Tensor | None,
        *,
        adds: bool,
    ) -> Tensor:
        """The derivative by the gradient, from those by what it made; adds that by the rows to `of_rows`, or writes it
        there. Without one by the weight there is none by the rows."""
        of_gradient = torch.empty_like(gradient) if of_bias is None else self.parts.spread(of_bias.to(self.dtype))
        adds_too = of_bias is not None
        if of_weight is not None:
            assert of_rows is not None
            factor, value = self.adjoint.factor, of_weight.to(self.dtype)
            pieces = zip(*map(self.parts.split, (gradient, of_rows, rows, of_gradient)), value, strict=True)
            for g, to_rows, x, to_gradient, v in pieces:
                there, back = (v, v.t()) if self.turned else (v.t(), v)
                torch.addmm(to_rows, g, back, beta=adds, alpha=factor, out=to_rows)
                torch.addmm(to_gradient, x, there, beta=adds_too, alpha=factor, out=to_gradient)
            adds_too = True
        self.adjoint.unread -= 1
        if of_before is not None:
            self.multiply(of_before, self.matrices(weight, there=True), of_gradient, adds=adds_too)
            self.adjoint.add(*self.pair(of_before, gradient), self.parts)
        elif not adds_too:
            of_gradient.zero_()
        return of_gradient


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, layers: list[_Layer], *both: Tensor | None) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        weights: Any = both[: len(layers)]
        ctx.layers = layers
        ctx.save_for_backward(rows, *weights)
        rows = rows.to(layers[0].dtype)
        pieces = zip(layers, weights, both[len(layers) :], strict=True)
        return tuple(layer.forward(rows, weight, bias) for layer, weight, bias in pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        layers: list[_Layer] = ctx.layers
        if all(gradient is None for gradient in gradients):
            return (None,) * (2 + 2 * len(layers))
        rows, *weights = ctx.saved_tensors
        given = [
            rows.new_zeros(len(rows), weight.shape[2 if layer.turned else 1], dtype=layer.dtype)
            if gradient is None
            else gradient
            for layer, weight, gradient in zip(layers, weights, gradients, strict=True)
        ]
        if torch.is_grad_enabled():
            before, *rest = _Back.apply(layers, rows, *given, *weights)
            return before, None, *rest
        before = None
        if ctx.needs_input_grad[0]:
            before = torch.empty_like(rows, dtype=layers[0].dtype)
            for number, (layer, weight, gradient) in enumerate(zip(layers, weights, given, strict=True)):
                layer.multiply(gradient, layer.matrices(weight, there=False), before, adds=number > 0)
            before = before.to(rows.dtype)
        for layer, gradient in zip(layers, given, strict=True):
            layer.adjoint.add(*layer.pair(rows.to(layer.dtype), gradient), layer.parts)
            layer.adjoint.settle()
        of_biases = [layer.of_bias(gradient, weights[0].dtype) for layer, gradient in zip(layers, given, strict=True)]
        return before, None, *[None] * len(layers), *of_biases


class _Back(torch.autograd.Function):
    """The way back through linear layers, to be gone back through in its turn."""

    @staticmethod
    def forward(ctx: Any, layers: list[_Layer], rows: Tensor, *both: Tensor) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        gradients, weights = both[: len(layers)], both[len(layers) :]
        ctx.layers = layers
        ctx.save_for_backward(rows, *both)
        given, rows = rows.dtype, rows.to(layers[0].dtype)
        before = torch.empty_like(rows)
        of_weights = [
            layer.backward(rows, gradient, weight, before, adds=number > 0)
            for number, (layer, gradient, weight) in enumerate(zip(layers, gradients, weights, strict=True))
        ]
        of_biases = [layer.of_bias(g, weights[0].dtype) for layer, g in zip(layers, gradients, strict=True)]
        return before.to(given), *of_weights, *of_biases

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_before: Tensor | None, *both: Tensor | None) -> tuple[Tensor | None, ...]:
        layers: list[_Layer] = ctx.layers
        of_weights, of_biases = both[: len(layers)], both[len(layers) :]
        rows, *saved = ctx.saved_tensors
        gradients, weights = saved[: len(layers)], saved[len(layers) :]
        given, rows = rows.dtype, rows.to(layers[0].dtype)
        of_before = of_before if of_before is None else of_before.to(rows.dtype)
        of_rows, adds, of_gradients = None, False, []
        for layer, gradient, weight, of_weight, of_bias in zip(
            layers, gradients, weights, of_weights, of_biases, strict=True
        ):
            if of_rows is None and of_weight is not None:
                of_rows = torch.empty_like(rows)
            of_gradients.append(
                layer.backward_of_backward(rows, gradient, weight, of_before, of_weight, of_bias, of_rows, adds=adds)
            )
            adds = of_rows is not None
        return None, of_rows if of_rows is None else of_rows.to(given), *of_gradients, *[None] * len(layers)
