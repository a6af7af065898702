"""Layers of several tasks by batched products: where each call is a launch, one for all tasks is faster than one each.

A weight is (tasks, ...), and each task has as many rows as any other (see `Parts.of`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distmeta.compute.destinations import Destination, add_product
from distmeta.compute.parts import Parts


def linear(rows: Tensor, matrices: Tensor, bias: Tensor | None, parts: Parts) -> Tensor:
    """(rows, in) times the matrices (tasks, in, out), and (tasks, out) if there is any: (rows, out)."""
    batch = parts.batch(rows)
    out = torch.bmm(batch, matrices) if bias is None else torch.baddbmm(bias[:, None], batch, matrices)
    return out.flatten(0, 1)


def layer_norm(row: Tensor, weight: Tensor, bias: Tensor, epsilon: float, parts: Parts) -> Tensor:
    """Layer norm of (1, rows, width) with weight and bias (tasks, width)."""
    batch = functional.layer_norm(parts.batch(row.squeeze(0)), row.shape[2:], eps=epsilon)
    return torch.addcmul(bias[:, None], batch, weight[:, None]).view(row.shape)


class SentLinear(torch.autograd.Function):
    """A linear layer whose weight gradients go to their destinations."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        parts: Parts,
        destinations: list[Destination],
        turned: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.parts, ctx.destinations, ctx.turned, ctx.given = parts, destinations, turned, rows.dtype
        rows, weight = rows.to(dtype), weight.to(dtype)
        # Not saved for the backward pass, which would refuse a weight that this very pass changes.
        ctx.matrices = weight if turned else weight.transpose(1, 2)
        ctx.save_for_backward(rows)
        return linear(rows, ctx.matrices, None if bias is None else bias.to(dtype), parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (rows,), parts, matrices = ctx.saved_tensors, ctx.parts, ctx.matrices
        gradient = gradient.to(matrices.dtype)
        before = None
        if ctx.needs_input_grad[0]:
            before = linear(gradient, matrices.transpose(1, 2), None, parts).to(ctx.given)
        to_weight, *to_bias = ctx.destinations
        left, right = (rows, gradient) if ctx.turned else (gradient, rows)
        of_weight = _send_product(to_weight, parts.batch(left), parts.batch(right))
        of_bias = _send(to_bias[0], parts.sums(gradient)) if to_bias else None
        return before, of_weight, of_bias, None, None, None, None


def _send_product(destination: Destination, left: Tensor, right: Tensor) -> Tensor | None:
    """Sends the gradient left^T right, or returns it where the weight was used elsewhere too."""
    if destination.uses != 1:
        return left.transpose(1, 2) @ right
    target = destination.target
    if target.ndim == 2:
        left, right = left.flatten(0, 1), right.flatten(0, 1)
    source = target if destination.source is None else destination.source
    add_product(target, left.transpose(-1, -2), right, source=source, factor=destination.factor)
    destination.is_written = True
    return None


def _send(destination: Destination, gradient: Tensor) -> Tensor | None:
    if destination.uses != 1:
        return gradient
    target = destination.target
    source = target if destination.source is None else destination.source
    torch.add(source, gradient if target.ndim == 2 else gradient.sum(0), alpha=destination.factor, out=target)
    destination.is_written = True
    return None
