"""Weights by task that inner steps move, where the moves are differentiated too (second order).

On the way back a weight W_k gets something from each of four products: those of the pass that made its gradient and of
that pass' own way back, and what comes through the step W_{k+1} = W_k - rate * gradient as it is. Autograd would make
each a tensor as large as the weight, and add them up. Here one tensor goes back through the steps (`Adjoint`), to
which the products add; and the step is made by the very product that would have made the gradient.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distmeta.models.destinations import add_product
from distmeta.models.parts import Parts


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
        terms = [(parts.split(left), parts.split(right)) for left, right, parts in self._terms]
        if len(self._shape) == 2:
            terms = [((left,), (right,)) for left, right, _ in self._terms]
        self._terms.clear()
        is_first = self._total is None
        if self._total is None:
            self._total = terms[0][0][0].new_empty(
                self._shape, dtype=torch.promote_types(terms[0][0][0].dtype, torch.float32)
            )
        for task, place in enumerate(self._total.view(-1, *self._shape[-2:])):
            left = torch.cat([lefts[task] for lefts, _ in terms]) if len(terms) > 1 else terms[0][0][task]
            right = torch.cat([rights[task] for _, rights in terms]) if len(terms) > 1 else terms[0][1][task]
            add_product(place, left.t(), right, source=None if is_first else place)


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


def linear(
    rows: Tensor, weight: Tensor, bias: Tensor | None, parts: Parts, *, turned: bool, dtype: torch.dtype
) -> Tensor:
    """`distmeta.models.by_task.linear` where the weight has an adjoint."""
    out: Tensor = _Linear.apply(rows, weight, bias, _Layer(parts, weight._adjoint, turned, dtype))  # type: ignore[attr-defined]
    return out


class _Layer:
    """What the passes through a linear layer share."""

    def __init__(self, parts: Parts, adjoint: Adjoint, turned: bool, dtype: torch.dtype) -> None:
        self.parts, self.adjoint, self.turned, self.dtype = parts, adjoint, turned, dtype

    def matrices(self, weight: Tensor, *, there: bool) -> list[Tensor]:
        """Of each task, what rows are multiplied with there (in, out) or on the way back (out, in)."""
        if not weight.stride(0):
            weight = weight[:1]  # of all tasks
        weight = weight.to(self.dtype)
        return list((weight if self.turned == there else weight.transpose(1, 2)).unbind())

    def multiply(self, rows: Tensor, matrices: list[Tensor], out: Tensor, *, adds: bool, factor: float = 1.0) -> None:
        """Adds to `out`, or writes there, each task's rows times its matrix."""
        pieces = [(rows,), (out,)] if len(matrices) == 1 else [self.parts.split(rows), self.parts.split(out)]
        for x, y, matrix in zip(*pieces, matrices, strict=True):
            torch.addmm(y, x, matrix, beta=adds, alpha=factor, out=y)

    def pair(self, rows: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """What makes the gradient of the weight, left^T right."""
        return (rows, gradient) if self.turned else (gradient, rows)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, layer: _Layer) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.has_bias = layer, bias is not None
        ctx.save_for_backward(rows, weight)
        rows = rows.to(layer.dtype)
        matrices = layer.matrices(weight, there=True)
        if bias is None:
            out = rows.new_empty(len(rows), matrices[0].shape[1])
        else:
            out = layer.parts.spread(bias.to(layer.dtype))
        layer.multiply(rows, matrices, out, adds=bias is not None)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        if gradient is None:
            return None, None, None, None
        if torch.is_grad_enabled():
            return *_Back.apply(gradient, rows, weight, ctx.layer, ctx.has_bias), None
        layer = ctx.layer
        before = None
        if ctx.needs_input_grad[0]:
            before = torch.empty_like(rows, dtype=layer.dtype)
            layer.multiply(gradient, layer.matrices(weight, there=False), before, adds=False)
            before = before.to(rows.dtype)
        layer.adjoint.add(*layer.pair(rows.to(layer.dtype), gradient), layer.parts)
        layer.adjoint.settle()
        return before, None, layer.parts.sums(gradient).to(weight.dtype) if ctx.has_bias else None, None


class _Back(torch.autograd.Function):
    """The way back through a linear layer, to be gone back through in its turn."""

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, rows: Tensor, weight: Tensor, layer: _Layer, has_bias: bool
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.layer = layer
        ctx.save_for_backward(gradient, rows, weight)
        adjoint, parts = layer.adjoint, layer.parts
        adjoint.unread += 1
        before = torch.empty_like(rows, dtype=layer.dtype)
        layer.multiply(gradient, layer.matrices(weight, there=False), before, adds=False)
        is_only = adjoint.uses == 1
        of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        left, right = layer.pair(rows.to(layer.dtype), gradient)
        for task, (a, b) in enumerate(zip(parts.split(left), parts.split(right), strict=True)):
            source, factor = (weight[task], adjoint.factor) if is_only else (None, 1.0)
            add_product(of_weight[task], a.t(), b, source=source, factor=factor)
        if is_only:
            # Nobody needs the gradient, but something has to stand for it on the way back.
            adjoint.moved = of_weight
            of_weight = weight.new_zeros(()).expand(weight.shape)
        return before.to(rows.dtype), of_weight, parts.sums(gradient).to(weight.dtype) if has_bias else None

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_before: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gradient, rows, weight = ctx.saved_tensors
        layer, adjoint = ctx.layer, ctx.layer.adjoint
        of_gradient = torch.empty_like(gradient) if of_bias is None else layer.parts.spread(of_bias.to(layer.dtype))
        adds = of_bias is not None
        of_rows = None
        if of_weight is not None:
            layer.multiply(
                rows.to(layer.dtype),
                layer.matrices(of_weight, there=True),
                of_gradient,
                adds=adds,
                factor=adjoint.factor,
            )
            adds = True
            of_rows = torch.empty_like(rows, dtype=layer.dtype)
            layer.multiply(gradient, layer.matrices(of_weight, there=False), of_rows, adds=False, factor=adjoint.factor)
            of_rows = of_rows.to(rows.dtype)
        adjoint.unread -= 1
        if of_before is not None:
            of_before = of_before.to(layer.dtype)
            layer.multiply(of_before, layer.matrices(weight, there=True), of_gradient, adds=adds)
            adjoint.add(*layer.pair(of_before, gradient), layer.parts)
        elif not adds:
            of_gradient.zero_()
        return of_gradient, of_rows, None, None, None
