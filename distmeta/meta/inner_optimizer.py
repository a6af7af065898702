"""One step of the inner loop as a pure function of tensors, so that it can be differentiated."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distmeta.meta.config import MetaConfig

Parameters = dict[str, Tensor]
State = dict[str, Any]

EPSILON = 1e-8
BETAS = (0.9, 0.999)


def clipped(gradients: Parameters, largest: float) -> Parameters:
    """The gradients, scaled down together where their norm is above `largest`; 0: as they are."""
    if not largest:
        return gradients
    square = sum((gradient.square().sum() for gradient in gradients.values()), torch.zeros(()))
    norm = (square + EPSILON**2).sqrt()  # which has a derivative where all are zero
    scale = (largest / (norm + 1e-6)).clamp(max=1.0)
    return {name: gradient * scale for name, gradient in gradients.items()}


def direction(gradients: Parameters, state: State, config: MetaConfig) -> tuple[Parameters, State]:
    """Where a step goes, phi <- phi - rate * direction, and the state of the optimizer after it.

        sgd        g
        momentum   m <- mu m + g;  m
        adam       m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  m' / sqrt(v' + epsilon^2), where m' and v' are m
                   and v over 1 - b^t (Kingma and Ba 2015; epsilon under the root, as the root has no slope at 0)

    `state` is {} before the first step. A weight whose gradient is not given has a gradient of 0 and no state yet.
    """
    gradients = clipped(gradients, config.inner_clipping)
    if config.inner_optimizer == "sgd":
        return gradients, state
    before: Parameters = state.get("m", {})
    if config.inner_optimizer == "momentum":
        moved = {
            name: gradient + config.inner_momentum * before[name] if name in before else gradient
            for name, gradient in gradients.items()
        }
        return moved, {"m": moved}
    step = state.get("step", 0) + 1
    first: Parameters = {}
    second: Parameters = {}
    moved = {}
    for name, gradient in gradients.items():
        zero = torch.zeros_like(gradient)
        first[name] = BETAS[0] * before.get(name, zero) + (1 - BETAS[0]) * gradient
        second[name] = BETAS[1] * state.get("v", {}).get(name, zero) + (1 - BETAS[1]) * gradient.square()
        mean, square = first[name] / (1 - BETAS[0] ** step), second[name] / (1 - BETAS[1] ** step)
        moved[name] = mean / (square + EPSILON**2).sqrt()
    return moved, {"m": first, "v": second, "step": step}


def state_tensors(state: Mapping[str, Any]) -> Parameters:
    """The tensors of a state of the optimizer, by `<part>/<weight>`."""
    parts = {key: values for key, values in state.items() if isinstance(values, dict)}
    return {f"{key}/{name}": value for key, values in parts.items() for name, value in values.items()}


def with_state_tensors(state: Mapping[str, Any], tensors: Parameters) -> State:
    """The state with others in their place."""
    parts = {key: values for key, values in state.items() if isinstance(values, dict)}
    return {**state, **{key: {name: tensors[f"{key}/{name}"] for name in values} for key, values in parts.items()}}
