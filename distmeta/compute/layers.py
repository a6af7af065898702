"""The layers of a transformer, whatever the architecture calls them, and the modules in them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


def layer_list(base: nn.Module) -> list[nn.Module]:
    """The layers: the longest list of modules."""
    lists = [list(module) for module in base.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def layers_of(base: nn.Module) -> int:
    """Number of layers."""
    return len(layer_list(base))


def layer_number(name: str) -> int | None:
    """The layer (from 0) that a parameter of that name belongs to; None where it is in none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def above_layer(names: Iterable[str], lowest: int) -> list[str]:
    """Those of the names, in the network's order, that belong to layers from number `lowest` (from 0) upwards.

    What stands before the first layer (embeddings) is below it, what stands behind the last (a final norm) above, as is
    a norm that is called final, which OPT has before its layers.
    """
    kept, seen = [], False
    for name in names:
        layer = layer_number(name)
        seen = seen or layer is not None
        if seen or "final" in name if layer is None else layer >= lowest:
            kept.append(name)
    return kept


@contextmanager
def computed_by(functions: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """While it is entered, modules compute by these functions instead of their own `forward`."""
    for module, function in functions.items():
        module.forward = function
    try:
        yield
    finally:
        for module in functions:
            del module.forward
