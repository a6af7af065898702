"""Products of many rows with a weight that all tasks share: by oneDNN on a CPU where MKL is the slower.

MKL does not use AVX-512 on AMD's processors; on one that has it, oneDNN, which torch has too, made products of 1000 to
4000 rows in 0.67 to 0.93 of the time. But it compiles a product for each number of rows, which only a large one repays;
and for most gradients of weights it is slower.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from distmeta.compute.layers import computed_by

LEAST = 2**26
"""Multiplications of a product that is large: it takes a millisecond or more, its compilation 0.3 ms."""
FEW = 16
"""Compiled products to be kept where only large ones are compiled: those of one row, of each shape of a layer."""

KEPT_BY_ONEDNN = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Environment variables that oneDNN and torch's way to it read at their first use: how many compiled products, of some
2 MB each, they keep; 1024 if nobody says."""


def keep_compiled(products: int) -> None:
    """To be called before the first product; what is in the environment already stays."""
    for name in KEPT_BY_ONEDNN:
        os.environ.setdefault(name, str(products))


@cache
def is_faster_here() -> bool:
    """Whether this is a processor with AVX-512 on which MKL does not use it."""
    about = Path("/proc/cpuinfo")
    is_from_amd = about.exists() and "AuthenticAMD" in about.read_text()
    return is_from_amd and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`functional.linear` of (..., in) with a weight (out, in)."""
    is_fp32 = rows.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    is_large = is_fp32 and rows.device.type == "cpu" and rows.numel() * len(weight) >= LEAST
    if not (is_large and is_faster_here()):
        return functional.linear(rows, weight, bias)
    out: Tensor = _Linear.apply(rows, weight, bias)
    return out


class _Linear(torch.autograd.Function):
    """Its way back is made of functions that can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        keep_compiled(FEW)
        reads_weight, reads_rows, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if reads_rows else None, weight if reads_weight else None)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        wide = gradient.flatten(0, -2)
        return (
            linear(gradient, weight.t(), None) if of_rows else None,
            wide.t() @ rows.flatten(0, -2) if of_weight else None,
            wide.sum(0) if of_bias else None,
        )


def linear_layers(model: nn.Module) -> list[nn.Module]:
    """Those of a model that `large_products` takes."""
    return [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]


def large_products(layers: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """While it is entered, linear layers take rows by `linear`."""
    return computed_by({layer: partial(_forward, layer) for layer in layers})


def _forward(layer: Any, rows: Tensor) -> Tensor:
    return linear(rows, layer.weight.t() if isinstance(layer, Conv1D) else layer.weight, layer.bias)
