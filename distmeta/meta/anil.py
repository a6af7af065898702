"""Almost no inner loop (Raghu et al. 2020, https://arxiv.org/abs/1909.09157).

    inner    only the head moves: w <- w - inner_lr * gradient of L_S(w), from zero, on features that stay
    outer    gradient of L_Q(w(theta), theta) with respect to theta, through the inner steps

Features do not depend on the head, so those of the support set are computed once a task, and no pass through the
network is differentiated twice.
"""

from typing import Any

from distmeta.meta.algorithm import Parameters
from distmeta.meta.gradient_based import GradientBased


class ANIL(GradientBased):
    """Second order, in the head alone; `meta.adapt` is not looked at."""

    second_order = True
    needs_head = True

    def __init__(self, network: Any, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(network, config.model_copy(update={"adapt": "head"}), *arguments, **options)

    @classmethod
    def learned(cls, network: Any, config: Any) -> Parameters:
        """See `GradientBased`."""
        return super().learned(network, config.model_copy(update={"adapt": "head"}))

    @classmethod
    def differentiates_twice(cls, config: Any) -> bool:
        """Never."""
        return False
