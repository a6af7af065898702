"""LoRA adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

The effective weight of a target is W + alpha / r * B A. While the network computes, alpha / r * B A x is added to what
the untouched layer makes of x, so any architecture serves and at B = 0 nothing changes; for an export the adapters are
written into the weights.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from distmeta.compute.by_task import linear
from distmeta.errors import UserError
from distmeta.section import finds

if TYPE_CHECKING:
    from distmeta.compute.batch import TokenBatch

_SEPARATE = re.compile(r"(^|\.)(query|value|q_proj|v_proj|q_lin|v_lin|query_proj|value_proj|q|v)$")
_FUSED = re.compile(r"(^|\.)c_attn$")


@dataclass(frozen=True)
class Target:
    """A weight, or a range of its output features, that gets an adapter."""

    weight: str
    """Name of the parameter in the network."""
    start: int
    stop: int
    """The output features that are adapted."""
    transposed: bool
    """Whether the weight is kept as (in, out), as GPT-2's Conv1D does."""

    @property
    def key(self) -> str:
        """Name of the adapter in a ParameterDict, which takes no dots."""
        return f"{self.weight.replace('.', '/')}/{self.start}"


def find_targets(network: nn.Module, pattern: str | None = None) -> list[Target]:
    """The linear layers whose name a regular expression finds; without one the query and value projections.

    Raises:
        UserError: there are none.
    """
    targets = []
    for name, module in network.named_modules():
        if pattern is not None:
            if not isinstance(module, nn.Linear | Conv1D) or not finds(pattern, name, "model.lora_targets"):
                continue
            if isinstance(module, nn.Linear):
                targets.append(Target(f"{name}.weight", 0, module.out_features, transposed=False))
            else:
                targets.append(Target(f"{name}.weight", 0, module.nf, transposed=True))
        elif isinstance(module, nn.Linear) and _SEPARATE.search(name):
            targets.append(Target(f"{name}.weight", 0, module.out_features, transposed=False))
        elif isinstance(module, Conv1D) and _FUSED.search(name) and module.nf % 3 == 0:
            width = module.nf // 3
            targets += [Target(f"{name}.weight", start, start + width, transposed=True) for start in (0, 2 * width)]
    if not targets and pattern is not None:
        raise UserError(f"model.lora_targets: {pattern} finds no linear layer in this model")
    if not targets:
        raise UserError("meta.adapt: lora finds no query and value projections in this model; use all or head")
    return targets


def make_adapters(network: nn.Module, targets: list[Target], rank: int) -> nn.ParameterDict:
    """The factors of each target: `<key>/a` of shape (rank, in), random, and `<key>/b` of shape (out, rank), zero."""
    adapters = nn.ParameterDict()
    for target in targets:
        weight = network.get_parameter(target.weight)
        in_features = weight.shape[0 if target.transposed else 1]
        factor = torch.empty(rank, in_features)
        nn.init.kaiming_uniform_(factor, a=5**0.5)
        adapters[f"{target.key}/a"] = nn.Parameter(factor)
        adapters[f"{target.key}/b"] = nn.Parameter(torch.zeros(target.stop - target.start, rank))
    return adapters


@contextmanager
def adapted(network: nn.Module, targets: list[Target], scale: float, batch: "TokenBatch") -> Iterator[None]:
    """While it is entered, the layers of the targets add what the network's adapters `lora` make of their input.

    Where each task of the batch has adapters of its own, (tasks, ...), they see its tokens alone.
    """
    adapters: Any = getattr(network, "lora", None)

    def add(target: Target, _module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        first, second = adapters[f"{target.key}/a"], adapters[f"{target.key}/b"]
        if first.ndim == 3:
            inner = linear(inputs[0].squeeze(0), first, None, batch.tokens_of_tasks)
            update = linear(scale * inner, second, None, batch.tokens_of_tasks).unsqueeze(0)
        else:
            update = functional.linear(scale * functional.linear(inputs[0], first), second)
        if update.shape[-1] < output.shape[-1]:
            update = functional.pad(update, (target.start, output.shape[-1] - target.stop))
        return output + update

    modules = [network.get_submodule(target.weight.removesuffix(".weight")) for target in targets]
    hooks = [
        module.register_forward_hook(partial(add, target)) for module, target in zip(modules, targets, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def merge(parameters: dict[str, torch.Tensor], targets: list[Target], scale: float) -> dict[str, torch.Tensor]:
    """The parameters with every adapter (`lora.<key>/a`, `lora.<key>/b`) written into its weight and taken out."""
    merged = {name: value for name, value in parameters.items() if not name.startswith("lora.")}
    for target in targets:
        delta = scale * (parameters[f"lora.{target.key}/b"] @ parameters[f"lora.{target.key}/a"])
        weight, axis = merged[target.weight], 0
        if target.transposed:
            delta, axis = delta.t(), 1
        before, _, after = weight.split([target.start, delta.shape[axis], weight.shape[axis] - target.stop], dim=axis)
        part = weight.narrow(axis, target.start, delta.shape[axis]) + delta
        merged[target.weight] = torch.cat([before, part, after], dim=axis)
    return merged
