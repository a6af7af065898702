"""The precision of passes through a network, and of these alone.

What is made of features (means over a text, a head's scores, the loss) costs little in full precision, and there one
number rounded is all that goes back through the network. So is the way back: in what each forward operation was.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

_wanted = threading.local()


@contextmanager
def passes_in(precision: str) -> Iterator[None]:
    """While it is entered in a thread, its forward passes are computed in `fp32` or `bf16`."""
    before = current()
    _wanted.precision = precision
    try:
        yield
    finally:
        _wanted.precision = before


def current() -> str:
    """What `passes_in` says; fp32 if nothing."""
    return getattr(_wanted, "precision", "fp32")


def of_pass(device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass."""
    if current() == "fp32":
        return nullcontext()
    # No cast is kept: a fast weight is used once and then replaced.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
