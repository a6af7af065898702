"""Where the gradient of a weight goes: added there by the product that makes it, it never is a tensor of its own.

So it is for first order, where inner steps move weights by their gradients, and tasks add theirs up.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Destination:
    """Where the gradient of a weight is added, and how often the weight was used since that was said."""

    target: Tensor
    """(tasks, ...), or (...) for the sum over the tasks."""
    factor: float
    source: Tensor | None = None
    """What `factor` times the gradient is added to, to be written to the target; None: the target itself."""
    uses: int = 0
    is_written: bool = False


def send_gradient(weight: Tensor, target: Tensor, factor: float, source: Tensor | None = None) -> Destination:
    """Has `factor` times the gradient of a weight (tasks, ...) added to a target in the next backward pass.

    So it is where the weight is used once, by a linear layer or a layer norm; otherwise it gets a gradient as ever.
    """
    destination = Destination(target, factor, source)
    weight._destination = destination  # type: ignore[attr-defined]
    return destination


_counting = threading.local()


@contextmanager
def uncounted() -> Iterator[None]:
    """While it is entered, uses of weights are those of a pass that is computed again, which count once."""
    _counting.is_off = True
    try:
        yield
    finally:
        _counting.is_off = False


def is_counted() -> bool:
    """Whether a use of a weight counts now."""
    return not getattr(_counting, "is_off", False)


def destinations_of(*weights: Tensor | None) -> list[Destination] | None:
    """Those of the weights, which are used now; None unless all of them have one."""
    if not torch.is_grad_enabled():
        return None
    given = [weight for weight in weights if weight is not None]
    found: list[Destination] = [weight._destination for weight in given if hasattr(weight, "_destination")]
    for destination in found:
        destination.uses += is_counted()
    return found if len(found) == len(given) else None


def add_product(target: Tensor, left: Tensor, right: Tensor, *, source: Tensor | None, factor: float = 1.0) -> None:
    """target = source + factor * left right, where a source of None is zeros; of matrices, or of batches of them."""
    if left.dtype != target.dtype:
        product = left @ right
        if source is None:
            torch.mul(product, factor, out=target)
        else:
            torch.add(source, product, alpha=factor, out=target)
        return
    multiply = torch.addmm if left.ndim == 2 else torch.baddbmm
    multiply(target if source is None else source, left, right, beta=source is not None, alpha=factor, out=target)
