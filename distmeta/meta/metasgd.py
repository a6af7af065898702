"""Meta-SGD (Li et al. 2017, https://arxiv.org/abs/1707.09835).

    inner    phi <- phi - alpha * gradient of L_S(phi), with a rate alpha for every single weight
    outer    gradient of L_Q(phi(theta, alpha)) with respect to theta and alpha

Classes have no order, so the rates of the head are one for each feature and one for the bias, the same for all classes.
"""

from dataclasses import replace
from typing import Any

import torch

from distmeta.meta.algorithm import Parameters
from distmeta.meta.gradient_based import GradientBased
from distmeta.meta.inner_loop import Rate
from distmeta.models.network import Localized


class MetaSGD(GradientBased):
    """Second order, unless `meta.second_order` is false."""

    second_order = True

    @classmethod
    def learned(cls, network: Any, config: Any) -> Parameters:
        """A vector of rates for each adapted tensor and for the head, flat, so that no weight decay is put on them."""
        shapes = dict(network.named_parameters())
        sizes = {name: shapes[name].numel() for name in network.adapted_names(config.adapt, config.last_k)}
        sizes |= {"head.weight": network.hidden_size, "head.bias": 1}
        return {_key(name): torch.full((size,), config.inner_lr) for name, size in sizes.items()}

    def rate(self, parameters: Parameters) -> Rate:
        """The learned rates."""

        def rate(name: str, step: int) -> torch.Tensor:
            alpha = parameters[f"learned.{_key(name)}"]
            return alpha if name.startswith("head.") else alpha.view(parameters[name].shape)

        return rate

    def _localized(self, parameters: Parameters, batches: list[Any], least_rows: int = 0) -> Localized:
        """With the rates of those rows of the word embedding that are left."""
        local = super()._localized(parameters, batches, least_rows)
        if local.embedding is None or local.rows is None or local.embedding not in self.adapted:
            return local
        key = f"learned.{_key(local.embedding)}"
        rates = parameters[key].view_as(parameters[local.embedding]).index_select(0, local.rows).flatten()
        return replace(local, parameters={**local.parameters, key: rates}, of_rows=(*local.of_rows, key))


def _key(name: str) -> str:
    """A name in a ParameterDict, which takes no dots."""
    return f"inner_lr/{name.replace('.', '/')}"
