"""Model-agnostic meta-learning (Finn et al. 2017, https://arxiv.org/abs/1703.03400).

    inner    phi <- phi - inner_lr * gradient of L_S(phi), from phi = theta and a head of zeros
    maml     gradient of L_Q(phi(theta)) with respect to theta, through every inner step
    fomaml   gradient of L_Q(phi) with respect to phi, taken as if it were theta's (first order, section 5.2)

Parameters that are not adapted get the plain gradient of L_Q in fomaml, and in maml what reaches them through the inner
steps as well.
"""

from distmeta.meta.gradient_based import GradientBased


class MAML(GradientBased):
    """Second order."""

    second_order = True


class FirstOrderMAML(GradientBased):
    """First order."""
