"""ProtoMAML (Triantafillou et al. 2020, https://arxiv.org/abs/1903.03096, section 3.4).

start    the head is that of a prototypical network: with c_k the mean feature of class k, w_k = 2 c_k and
         b_k = -|c_k|^2, whose scores are -|f - c_k|^2 up to what is the same for every class
inner    phi <- phi - inner_lr * gradient of L_S(phi), head included
outer    as first-order MAML (second order with `meta.second_order`); the head's gradient goes on through the
         prototypes into theta
"""

from typing import Any

from torch import Tensor

from distmeta.meta.algorithm import Parameters
from distmeta.meta.gradient_based import GradientBased
from distmeta.meta.protonet import class_means


class ProtoMAML(GradientBased):
    """First order, as in the paper."""

    starts_at_chance = False
    needs_head = True
    needs_every_class = True

    def start_head(self, parameters: Parameters, support: Any, labels: Tensor, n_way: int) -> Parameters:
        """The head of the prototypes, with its graph."""
        centers = class_means(self.network.features(parameters, support), labels, n_way, support)
        return {"head.weight": 2 * centers, "head.bias": -centers.square().sum(-1)}
