"""Attention whose way back is differentiated too (second order), which fused attention cannot be.

Autograd would take the formulas apart into several times as many operations, on tensors so small that each costs its
call.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from distmeta.compute.layout import Grid


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grids: Sequence[Grid],
    scaling: float,
    dropout: float,
    is_causal: bool,
) -> Tensor:
    """Attention of each place to those of its own text and head.

    Args:
        query: (places, d), those of a head of a text one after the other, in the order of the grids.
        key: likewise, and so is what is returned.
        value: likewise.
        grids: the texts.
        scaling: what the scores are multiplied with.
        dropout: the share of the weights that is dropped.
        is_causal: see `Grid.mask`.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # some models turn them in fp32
    out: Tensor = _Attention.apply(query, key, value, grids, scaling, dropout, is_causal)
    return out


def _split(grids: Sequence[Grid], *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of each grid, each tensor's (texts * heads, longest, d)."""
    heads = len(tensors[0]) // sum(grid.texts * grid.longest for grid in grids)
    sizes = [grid.texts * heads * grid.longest for grid in grids]
    for grid, *parts in zip(grids, *(each.split(sizes) for each in tensors), strict=True):
        yield tuple(part.view(-1, grid.longest, part.shape[1]) for part in parts)


class _Attention(torch.autograd.Function):
    """P V, where P is the softmax of S = c Q K^T + mask, times D, zero or more where weights are dropped."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        grids: Sequence[Grid],
        scaling: float,
        dropout: float,
        is_causal: bool,
    ) -> Tensor:
        out = torch.empty_like(value)
        kept: list[Tensor] = []
        for grid, (q, k, v, o) in zip(grids, _split(grids, query, key, value, out), strict=True):
            scores = torch.bmm(q, k.transpose(1, 2)).view(grid.texts, -1, grid.longest, grid.longest)
            scores = torch.add(grid.mask(scores.dtype, is_causal=is_causal), scores, alpha=scaling)
            weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).flatten(0, 1)
            kept.append(weights)
            if dropout:
                kept.append(functional.dropout(torch.ones_like(weights), dropout))
                weights = weights * kept[-1]
            torch.bmm(weights.to(v.dtype), v, out=o)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.found = grids, scaling
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *_AttentionBack.apply(gradient, *ctx.found, *ctx.saved_tensors), None, None, None, None


def _weights(grids: Sequence[Grid], kept: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """P and D of each grid."""
    if len(kept) == len(grids):
        return zip(kept, [None] * len(kept), strict=True)
    return zip(kept[::2], kept[1::2], strict=True)


def _times(weights: Tensor, dropped: Tensor | None) -> Tensor:
    return weights if dropped is None else weights * dropped


def _through_softmax(gradient: Tensor, weights: Tensor) -> Tensor:
    """P * (gradient - the sum of P * gradient over the places seen)."""
    out: Tensor = torch.ops.aten._softmax_backward_data(gradient, weights, -1, weights.dtype)
    return out


class _AttentionBack(torch.autograd.Function):
    """With G the gradient: dV = (P D)^T G, dP = (G V^T) D, dS = P (dP - sum of P dP), dQ = c dS K, dK = c dS^T Q."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        grids: Sequence[Grid],
        scaling: float,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *kept: Tensor,
    ) -> tuple[Tensor, ...]:
        found = tuple(torch.empty_like(each) for each in (query, key, value))
        pieces = _split(grids, gradient, query, key, value, *found)
        for (g, q, k, v, to_q, to_k, to_v), (weights, dropped) in zip(pieces, _weights(grids, kept), strict=True):
            of_weights = _times(torch.bmm(g, v.transpose(1, 2)).to(weights.dtype), dropped)
            of_scores = _through_softmax(of_weights, weights).mul_(scaling).to(q.dtype)
            torch.bmm(_times(weights, dropped).to(g.dtype).transpose(1, 2), g, out=to_v)
            torch.bmm(of_scores, k, out=to_q)
            torch.bmm(of_scores.transpose(1, 2), q, out=to_k)
        ctx.save_for_backward(gradient, query, key, value, *kept)
        ctx.found = grids, scaling
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_query: Tensor, of_key: Tensor, of_value: Tensor) -> tuple[Tensor | None, ...]:
        gradient, query, key, value, *kept = ctx.saved_tensors
        grids, scaling = ctx.found
        found = tuple(torch.empty_like(each) for each in (gradient, query, key, value))
        pieces = _split(grids, gradient, query, key, value, of_query, of_key, of_value, *found)
        for piece, (weights, dropped) in zip(pieces, _weights(grids, kept), strict=True):
            g, q, k, v, of_q, of_k, of_v, to_g, to_q, to_k, to_v = piece
            dtype, wide = g.dtype, weights.dtype
            of_weights = _times(torch.bmm(g, v.transpose(1, 2)).to(wide), dropped)
            of_scores = _through_softmax(of_weights, weights).mul_(scaling).to(dtype)
            # By dS, by dP, and by P, which stands in dV and dS.
            by_scores = torch.bmm(of_q, k.transpose(1, 2)).baddbmm_(q, of_k.transpose(1, 2)).to(wide).mul_(scaling)
            by_of_weights = _times(_through_softmax(by_scores, weights), dropped).to(dtype)
            by_weights = _times(torch.bmm(g, of_v.transpose(1, 2)).to(wide), dropped)
            by_weights.addcmul_(by_scores, of_weights - (weights * of_weights).sum(-1, keepdim=True))
            by_weights.addcmul_(of_weights, (weights * by_scores).sum(-1, keepdim=True), value=-1)
            through = _through_softmax(by_weights, weights).mul_(scaling).to(dtype)
            torch.bmm(by_of_weights, v, out=to_g).baddbmm_(_times(weights, dropped).to(dtype), of_v)
            torch.bmm(of_scores, of_k, out=to_q).baddbmm_(through, k)
            torch.bmm(of_scores.transpose(1, 2), of_q, out=to_k).baddbmm_(through.transpose(1, 2), q)
            torch.bmm(by_of_weights.transpose(1, 2), g, out=to_v)
        to_gradient, *rest = found
        return to_gradient, None, None, *rest, *[None] * len(kept)
