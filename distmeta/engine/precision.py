"""Which arithmetic is the faster one here: CPUs differ, and some compute bf16 at half the speed of fp32."""

import logging
import time
from functools import lru_cache
from typing import Any, Literal

import torch

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "auto"]

SIZE = 512
"""Rows and columns of the matrices that are multiplied."""


@lru_cache
def choose_precision(wanted: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`fp32` or `bf16`: what is wanted, or for `auto` the faster by a measurement of milliseconds, which is said."""
    if wanted != "auto":
        return wanted
    rates: dict[Literal["fp32", "bf16"], float] = {
        "fp32": _rate(torch.float32, device),
        "bf16": _rate(torch.bfloat16, device),
    }
    chosen = max(rates, key=lambda name: rates[name])
    shown = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    logger.warning("engine.precision: auto takes %s (GFLOP/s of a matrix product: %s)", chosen, shown)
    return chosen


def agreed_precision(wanted: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """The same on every worker of a process group: what the first one finds."""
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
