"""Weights of which each task of a packed row has its own version.

Such a weight has one more dimension in front: (tasks, ...). The modules that hold one see the row cut into the tasks'
parts; all else, attention and activations and shared layers, sees the whole row, so that several small tasks cost
hardly more calls than one.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from distmeta.compute import batched, large_products, norm_twice, twice
from distmeta.compute.destinations import Destination, add_product, destinations_of
from distmeta.compute.layers import computed_by
from distmeta.compute.parts import Parts, is_batched

TOGETHER = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)
"""What `transformers` calls the linear layers of a module that read the same rows."""


def linears(
    rows: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], parts: Parts, *, turned: bool = False
) -> Sequence[Tensor]:
    """`linear` of the same rows with each of some weights."""
    are_by_task = all(bias is None or bias.ndim == 2 for bias in biases)
    # In bf16 what goes back to the rows is better added up in fp32.
    if are_by_task and twice.serves(weights) and _dtype(rows) == rows.dtype:
        return twice.linears(rows, weights, biases, parts, turned=turned, dtype=rows.dtype)
    return [linear(rows, weight, bias, parts, turned=turned) for weight, bias in zip(weights, biases, strict=True)]


def _dtype(rows: Tensor) -> torch.dtype:
    """What a product of rows is computed in."""
    kind = rows.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None, parts: Parts, *, turned: bool = False) -> Tensor:
    """`functional.linear` of (rows, in) with a weight of each task: (rows, out).

    Args:
        rows: (rows, in).
        weight: (tasks, out, in), or where it is turned (tasks, in, out).
        bias: (tasks, out), or (out,) for all tasks, or None.
        parts: which rows are whose.
        turned: see `weight`.
    """
    if bias is not None and bias.ndim == 1:
        return linear(rows, weight, None, parts, turned=turned) + bias
    if twice.serves([weight]):
        return twice.linears(rows, [weight], [bias], parts, turned=turned, dtype=_dtype(rows))[0]
    destinations = destinations_of(weight, bias)
    if destinations is not None:
        function = batched.SentLinear if is_batched(rows.device) else _Linear
        return function.apply(rows, weight, bias, parts, destinations, turned, _dtype(rows))
    matrices = weight if turned else weight.transpose(1, 2)
    if is_batched(rows.device):
        return batched.linear(rows, matrices, bias, parts)
    return torch.cat(
        [
            part @ matrix if bias is None else torch.addmm(bias[task], part, matrix)
            for task, (part, matrix) in enumerate(zip(parts.split(rows), matrices.unbind(), strict=True))
        ]
    )


class _Linear(torch.autograd.Function):
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
        bias = bias if bias is None else bias.to(dtype)
        # (tasks, in, out). Not saved for the backward pass, which would refuse a weight that this very pass changes.
        ctx.matrices = matrices = weight if turned else weight.transpose(1, 2)
        out = rows.new_empty(len(rows), matrices.shape[2])
        pieces = zip(parts.split(rows), matrices.unbind(), parts.split(out), strict=True)
        if bias is None:
            for part, matrix, result in pieces:
                torch.mm(part, matrix, out=result)
        else:
            for (part, matrix, result), own in zip(pieces, bias.unbind(), strict=True):
                torch.addmm(own, part, matrix, out=result)
        ctx.save_for_backward(rows)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts, matrices, (rows,) = ctx.parts, ctx.matrices, ctx.saved_tensors
        gradient = gradient.to(matrices.dtype)
        to_weight, *to_bias = ctx.destinations
        before: Tensor | None = None
        to_before: Sequence[Tensor | None] = [None] * len(matrices)
        if ctx.needs_input_grad[0]:
            before = gradient.new_empty(len(gradient), matrices.shape[1])
            to_before = parts.split(before)
        weights, biases = _Sum(to_weight, 2), [_Sum(each, 1) for each in to_bias]
        pieces = zip(parts.split(rows), parts.split(gradient), matrices.unbind(), to_before, strict=True)
        for task, (x, g, matrix, out) in enumerate(pieces):
            if out is not None:
                torch.mm(g, matrix.t(), out=out)
            # At once, while the weight is in the cache.
            weights.add(task, *((x.t(), g) if ctx.turned else (g.t(), x)))
            for bias in biases:
                bias.add(task, g.sum(0))
        before = before if before is None else before.to(ctx.given)
        return before, weights.gradient(), biases[0].gradient() if biases else None, None, None, None, None


class _Sum:
    """Adds each task's gradient of a weight to where it belongs, or, where the weight was used elsewhere too, keeps it
    to be returned."""

    def __init__(self, destination: Destination, dimensions: int) -> None:
        self._factor = destination.factor
        self._kept: list[Tensor] = []
        self._is_sent = destination.uses == 1
        if self._is_sent:
            source, target = destination.source, destination.target
            destination.is_written = True
            self._places = target.unbind() if target.ndim > dimensions else (target,)
            self._sources = self._places if source is None else source.unbind()

    def add(self, task: int, term: Tensor, right: Tensor | None = None) -> None:
        """Adds a term, or the product of two."""
        if not self._is_sent:
            self._kept.append(term if right is None else term @ right)
            return
        place, source = (each[task % len(each)] for each in (self._places, self._sources))
        if right is None:
            torch.add(source, term, alpha=self._factor, out=place)
        else:
            add_product(place, term, right, source=source, factor=self._factor)

    def gradient(self) -> Tensor | None:
        """What was kept, (tasks, ...)."""
        return torch.stack(self._kept) if self._kept else None


class _LayerNorm(torch.autograd.Function):
    """A layer norm whose weight gradients go to their destinations."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
        parts: Parts,
        destinations: list[Destination],
    ) -> Tensor:
        ctx.affine, ctx.parts, ctx.destinations = (weight, bias), parts, destinations
        ctx.save_for_backward(rows)
        out, ctx.statistics = norm_twice.normalized(rows, weight, bias, epsilon, parts)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (rows,), parts = ctx.saved_tensors, ctx.parts
        weights, biases = (_Sum(destination, 1) for destination in ctx.destinations)
        pieces = zip(parts.split(gradient), parts.split(rows), ctx.statistics, *ctx.affine, strict=True)
        found = []
        for task, (part, before, statistics, weight, bias) in enumerate(pieces):
            through, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
                part, before, rows.shape[1:], *statistics, weight, bias, [True, True, True]
            )
            found.append(through)
            weights.add(task, of_weight)
            biases.add(task, of_bias)
        return torch.cat(found), weights.gradient(), biases.gradient(), None, None, None


def layers_together(model: nn.Module) -> list[list[nn.Module]]:
    """The linear layers that read the same rows, see `TOGETHER`."""
    children = [dict(module.named_children()) for module in model.modules()]
    found = [[each[name] for name in names] for each in children for names in TOGETHER if each.keys() >= set(names)]
    return [layers for layers in found if all(type(layer) is nn.Linear for layer in layers)]


class _Together:
    """Linear layers of which the first one that is called computes what all of them make of the row."""

    def __init__(self, layers: Sequence[Any], parts: Parts) -> None:
        self._layers, self._parts = layers, parts
        self._row: Tensor | None = None
        self._made: dict[nn.Module, Tensor] = {}

    def __call__(self, layer: nn.Module, row: Tensor) -> Tensor:
        if self._row is not row or layer not in self._made:
            weights, biases = zip(*((each.weight, each.bias) for each in self._layers), strict=True)
            made = linears(row.squeeze(0), weights, biases, self._parts)
            self._row, self._made = row, dict(zip(self._layers, made, strict=True))
        own = self._made.pop(layer).unsqueeze(0)
        if not self._made:
            self._row = None
        return own


def weights_by_task(
    modules: Mapping[nn.Module, Sequence[str]], parts: Parts, together: Sequence[Sequence[nn.Module]] = ()
) -> AbstractContextManager[None]:
    """While it is entered, the modules take packed rows (1, tokens, ...) with weights (tasks, ...).

    Args:
        modules: which of their weights, by attribute, are a task's own.
        parts: which tokens are whose.
        together: which of all modules are linear layers that read the same rows.
    """
    functions: dict[nn.Module, Callable[..., Tensor]] = {
        module: partial(_FORWARD.get(type(module), _forward), module, names, parts) for module, names in modules.items()
    }
    for layers in together:
        if all("weight" in modules.get(layer, ()) for layer in layers):
            shared = _Together(layers, parts)
            functions |= {layer: partial(shared, layer) for layer in layers}
    return computed_by(functions)


def _forward(module: Any, names: Sequence[str], parts: Parts, row: Tensor, *arguments: Any) -> Tensor:
    """What a module of any kind, if it takes each token for itself, makes of the row: called once a task."""
    own = {name: module._parameters[name] for name in names}
    versions = {name: weight.unbind() for name, weight in own.items()}
    out = []
    try:
        for task, part in enumerate(parts.split(row, 1)):
            module._parameters.update({name: each[task] for name, each in versions.items()})
            out.append(type(module).forward(module, part, *arguments))
    finally:
        module._parameters.update(own)
    return torch.cat(out, 1)


def _linear(module: Any, names: Sequence[str], parts: Parts, row: Tensor) -> Tensor:
    turned = isinstance(module, Conv1D)
    weight, bias = module.weight, module.bias
    if "weight" in names:
        return linear(row.squeeze(0), weight, bias, parts, turned=turned).unsqueeze(0)
    out = large_products.linear(row, weight.t() if turned else weight, None)
    return out + parts.spread(bias)


def _layer_norm(module: Any, names: Sequence[str], parts: Parts, row: Tensor) -> Tensor:
    if len(names) == 2 and is_batched(row.device):
        return batched.layer_norm(row, module.weight, module.bias, module.eps, parts)
    if len(names) == 2 and not torch.is_autocast_enabled(row.device.type):
        destinations = destinations_of(module.weight, module.bias)
        if destinations is not None:
            return _LayerNorm.apply(
                row.squeeze(0), module.weight, module.bias, module.eps, parts, destinations
            ).unsqueeze(0)
        return norm_twice.layer_norm(row.squeeze(0), module.weight, module.bias, module.eps, parts).unsqueeze(0)
    return _forward(module, names, parts, row)


def _embedding(module: Any, names: Sequence[str], parts: Parts, ids: Tensor) -> Tensor:
    if module.padding_idx is not None:
        return _forward(module, names, parts, ids)
    table = module.weight
    return functional.embedding(ids + table.shape[1] * parts.numbers(ids), table.flatten(0, 1))


_FORWARD = {nn.Linear: _linear, Conv1D: _linear, nn.LayerNorm: _layer_norm, nn.Embedding: _embedding}
