"""Gradients by name: taken and added up."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distmeta.compute.twice import Adjoint
from distmeta.meta.algorithm import Parameters


def requiring(values: Parameters) -> Parameters:
    """The same values, to be differentiated by."""
    return {name: value.detach().requires_grad_() for name, value in values.items()}


def gradients_of(outputs: Any, sources: Parameters, cotangents: list[Tensor] | None = None) -> Parameters:
    """Those of the outputs by each source that asks for one and that they depend on."""
    wanted = {name: value for name, value in sources.items() if value.requires_grad}
    found = torch.autograd.grad(outputs, list(wanted.values()), cotangents, allow_unused=True)
    return {name: gradient for name, gradient in zip(wanted, found, strict=True) if gradient is not None}


def settled(adjoints: Mapping[str, Adjoint]) -> Parameters:
    """What has been kept aside of derivatives, where there is something."""
    found = {name: adjoint.result() for name, adjoint in adjoints.items()}
    return {name: value for name, value in found.items() if value is not None}


def summed(value: Tensor, like: Tensor) -> Tensor:
    """Summed over the dimension of tasks, if there is one that `like` has not."""
    return value.sum(0) if value.ndim > like.ndim else value


def accumulate(total: Parameters, more: Parameters, weight: float = 1.0) -> None:
    """Adds `weight` times the gradients to a total."""
    for name, gradient in more.items():
        if name in total:
            total[name] = total[name] + weight * gradient
        else:
            total[name] = gradient if weight == 1.0 else weight * gradient
