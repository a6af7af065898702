"""Dropout that draws the same twice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """What dropout draws from on a device, and on the CPU."""
    return (torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else []))


@contextmanager
def drawing_again(device: torch.device, state: tuple[Tensor, ...]) -> Iterator[None]:
    """While it is entered, dropout draws from this state on; afterwards as if nothing had been drawn."""
    of_cpu, *of_gpu = state
    with torch.random.fork_rng([device] if of_gpu else []):
        torch.set_rng_state(of_cpu)
        for each in of_gpu:
            torch.cuda.set_rng_state(each, device)
        yield
