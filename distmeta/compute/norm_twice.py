"""A layer norm with a weight and a bias of each task, whose way back is differentiated too (second order).

Autograd would take the formulas apart into operations over all rows, more than twice as many.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distmeta.compute.parts import Parts


def layer_norm(rows: Tensor, weight: Tensor, bias: Tensor, epsilon: float, parts: Parts) -> Tensor:
    """`functional.layer_norm` of (rows, width) with weight and bias (tasks, width)."""
    out: Tensor = _Norm.apply(rows, weight, bias, epsilon, parts)
    return out


def normalized(
    rows: Tensor, weight: Tensor, bias: Tensor, epsilon: float, parts: Parts
) -> tuple[Tensor, list[list[Tensor]]]:
    """Without a way back: the layer norm, and of each task the means and reciprocal deviations that it found."""
    found = [
        torch.native_layer_norm(part, rows.shape[1:], own_weight, own_bias, epsilon)
        for part, own_weight, own_bias in zip(parts.split(rows), weight, bias, strict=True)
    ]
    return torch.cat([out for out, *_ in found]), [statistics for _, *statistics in found]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, epsilon: float, parts: Parts) -> Tensor:
        ctx.save_for_backward(rows, weight, bias)
        out, ctx.statistics = normalized(rows, weight, bias, epsilon, parts)
        ctx.parts = parts
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *_NormBack.apply(gradient, *ctx.saved_tensors, ctx.statistics, ctx.parts), None, None


class _NormBack(torch.autograd.Function):
    """With x^ the normalised rows, s what they were scaled by, w the weight and g the gradient: to the rows goes
    P(w g), where P(u) = s (u - mean(u) - x^ mean(u x^)), and to the weight the sum of g x^."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        statistics: list[list[Tensor]],
        parts: Parts,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, rows, weight)
        ctx.statistics, ctx.parts = statistics, parts
        pieces = zip(parts.split(gradient), parts.split(rows), statistics, weight, bias, strict=True)
        found = [
            torch.ops.aten.native_layer_norm_backward(part, before, rows.shape[1:], *own, *affine, [True, True, True])
            for part, before, own, *affine in pieces
        ]
        through, of_weight, of_bias = zip(*found, strict=True)
        return torch.cat(through), torch.stack(of_weight), torch.stack(of_bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_before: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gradient, rows, weight = ctx.saved_tensors
        mean, scale = (torch.cat(each) for each in zip(*ctx.statistics, strict=True))
        parts = ctx.parts
        normal = (rows - mean).mul_(scale)
        of_gradient = torch.zeros_like(gradient) if of_bias is None else parts.spread(of_bias)
        of_normal = torch.zeros_like(rows)
        to_weight = along = None
        if of_weight is not None:
            spread = parts.spread(of_weight)
            of_gradient.addcmul_(spread, normal)
            of_normal = spread.mul_(gradient)
        if of_before is not None:
            # P is its own transpose. It depends on the rows by x^ where this stands in it, and by s.
            each = parts.spread(weight)
            through = _project(of_before, rows, mean, scale)
            of_gradient.addcmul_(each, through)
            to_weight = parts.sums(gradient * through)
            scaled = each.mul_(gradient)
            along = scale * _mean(scaled * through)
            of_normal.addcmul_(of_before, scale * _mean(scaled * normal), value=-1)
            of_normal.addcmul_(scaled, scale * _mean(of_before * normal), value=-1)
        of_rows = _project(of_normal, rows, mean, scale)
        if along is not None:
            of_rows.addcmul_(normal, along, value=-1)
        return of_gradient, of_rows, to_weight, None, None, None


def _project(rows: Tensor, before: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """P of `_NormBack`."""
    out: Tensor = torch.ops.aten.native_layer_norm_backward(
        rows, before, before.shape[1:], mean, scale, None, None, [True, False, False]
    )[0]
    return out


def _mean(rows: Tensor) -> Tensor:
    return rows.mean(-1, keepdim=True)
