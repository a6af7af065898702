"""Which arithmetic is the faster one here: CPUs differ, and some compute bf16 at half the speed of fp32."""

import logging
import time
from functools import lru_cache
from typing import Any, Literal

import torch

from distmeta.compute.large_products import FEW, keep_compiled

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "auto"]

SIZE = 512
"""Rows and columns of the matrices that are multiplied."""

KEPT_IN_BF16 = 64
"""Compiled products to be kept where all are compiled: enough for those of one length of a packed row."""


def set_up_arithmetic(wanted: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Has torch compute in what is wanted, the same on every worker of a process group, and returns what that is.

    What oneDNN compiles for each length of a packed row stands in small pieces between the tensors and leaves freed
    memory in parts that few fit in, so that a process grows with every length that it sees. In fp32 torch would have it
    compute little but GELU, at most a fifth faster, and it is left out, but for `distmeta.compute.large_products`; in
    bf16 it computes all products, and keeps few.
    """
    keep_compiled(FEW if wanted == "fp32" else KEPT_IN_BF16)
    torch.backends.mkldnn.enabled = True  # type: ignore[assignment]  # typed as its property
    precision = _agreed(wanted, device)
    torch.backends.mkldnn.enabled = precision == "bf16"  # type: ignore[assignment]
    return precision


@lru_cache
def choose_precision(wanted: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`fp32` or `bf16`: what is wanted, or for `auto` the faster by a measurement of milliseconds, which is said."""
    if wanted != "auto":
        return wanted
    chosen, rates = faster(device)
    shown = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    logger.warning("engine.precision: auto takes %s (GFLOP/s of a matrix product: %s)", chosen, shown)
    return chosen


@lru_cache
def faster(device: torch.device) -> tuple[Literal["fp32", "bf16"], dict[Literal["fp32", "bf16"], float]]:
    """The faster one, and the operations a second of both."""
    rates: dict[Literal["fp32", "bf16"], float] = {
        "fp32": _rate(torch.float32, device),
        "bf16": _rate(torch.bfloat16, device),
    }
    return max(rates, key=lambda name: rates[name]), rates


def _agreed(wanted: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """What the first worker finds."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return choose_precision(wanted, device)
    chosen: list[Any] = [choose_precision(wanted, device) if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(chosen)
    return chosen[0]


def _rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the best of a few products."""
    left = torch.rand(SIZE, SIZE, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        # Reading a number waits for a GPU.
        (left @ left)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * SIZE**3 / best
