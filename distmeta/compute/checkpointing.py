"""Activation checkpointing (Chen et al. 2016, https://arxiv.org/abs/1604.06174) where weights come from outside.

A layer's activations are not kept for the backward pass but computed again in it. By then the parameters that the
network was called with are no longer in its modules, so they, and whatever else stood around the first pass, are put
back for the second one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from distmeta.compute.destinations import uncounted
from distmeta.compute.layers import computed_by, layer_list


def layers_computed_again(base: nn.Module, again: Callable[..., Any]) -> AbstractContextManager[None]:
    """While it is entered, a forward pass through the network keeps no activations within its layers.

    Args:
        base: the network.
        again: computes a layer as the forward pass does, given the layer and its arguments.
    """
    return computed_by({layer: partial(_checkpointed, layer, again) for layer in layer_list(base)})


def _checkpointed(layer: nn.Module, again: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    passes = 0

    def compute(*given: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 1:
            return type(layer).forward(layer, *given, **options)
        with uncounted():
            return again(layer, given, options)

    return checkpoint(compute, *arguments, use_reentrant=False)
