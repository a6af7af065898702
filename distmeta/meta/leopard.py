"""LEOPARD (Bansal et al. 2020, https://arxiv.org/abs/1911.03863): for tasks with different numbers of classes.

    start    class k's row of the head, weight and bias together, is the mean over its support examples of g(f), where g
             is a learned perceptron of one hidden layer (tanh)
    scores   head(h(f)), where h is a learned projection (tanh)
    inner    phi <- phi - rate * gradient of L_S(phi), where phi are the adapted weights and the head; g and h stay, and
             the rates are learned by tensor and step with `inner_rates: layer_step`, as the paper does by layer
    outer    as first-order MAML (second order with `meta.second_order`); the head's gradient goes on into g and theta

The paper adapts the upper layers of the encoder: `adapt: last_k`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distmeta.meta.algorithm import Parameters
from distmeta.meta.gradient_based import GradientBased
from distmeta.meta.protonet import class_means


class LEOPARD(GradientBased):
    """First order, unless `meta.second_order`."""

    starts_at_chance = False
    needs_head = True
    needs_every_class = True

    def __init__(self, network: Any, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(_Projected(network), config, *arguments, **options)

    @classmethod
    def learned(cls, network: Any, config: Any) -> Parameters:
        """The generator's and the projection's weights, and rates where asked for."""
        width = network.hidden_size

        def matrix(rows: int, columns: int) -> Tensor:
            return torch.empty(rows, columns).uniform_(-1, 1) / math.sqrt(columns)

        return {
            "projection/weight": matrix(width, width),
            "projection/bias": torch.zeros(width),
            "generator/weight": matrix(width, width),
            "generator/bias": torch.zeros(width),
            "generator/out/weight": matrix(width + 1, width),
            "generator/out/bias": torch.zeros(width + 1),
            **super().learned(network, config),
        }

    def start_head(self, parameters: Parameters, support: Any, labels: Tensor, n_way: int) -> Parameters:
        """The generated head, with its graph."""
        features = self.network.network.features(parameters, support)
        hidden = functional.linear(
            features, parameters["learned.generator/weight"], parameters["learned.generator/bias"]
        ).tanh()
        rows = functional.linear(
            hidden, parameters["learned.generator/out/weight"], parameters["learned.generator/out/bias"]
        )
        means = class_means(rows, labels, n_way, support)
        return {"head.weight": means[..., :-1], "head.bias": means[..., -1]}


class _Projected:
    """The network with the projection behind its features."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __getattr__(self, name: str) -> Any:
        if name == "network":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.network, name)

    def features(self, parameters: Parameters, batch: Any) -> Tensor:
        weight, bias = parameters["learned.projection/weight"], parameters["learned.projection/bias"]
        return functional.linear(self.network.features(parameters, batch), weight, bias).tanh()
