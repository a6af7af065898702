"""What is written out for second order is what torch computes, and has the derivatives of finite differences."""

import torch
from torch.nn import functional

from distmeta.models import norm_twice
from distmeta.models.parts import Parts


def random(*shape: int) -> torch.Tensor:
    """Numbers to be differentiated by."""
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def has_both_derivatives(function, *given: torch.Tensor) -> bool:
    """By finite differences; raises where they differ."""
    return torch.autograd.gradcheck(function, given) and torch.autograd.gradgradcheck(function, given)


def test_a_layer_norm_of_tasks():
    torch.manual_seed(0)
    parts = Parts((3, 1, 2))
    rows, weight, bias = random(6, 5), random(3, 5), random(3, 5)
    out = norm_twice.layer_norm(rows, weight, bias, 1e-5, parts)
    for task, (part, found) in enumerate(zip(parts.split(rows), parts.split(out), strict=True)):
        torch.testing.assert_close(found, functional.layer_norm(part, (5,), weight[task], bias[task], 1e-5))
    assert has_both_derivatives(lambda *each: norm_twice.layer_norm(*each, 1e-5, parts), rows, weight, bias)
    assert has_both_derivatives(lambda *each: norm_twice.layer_norm(*each, bias, 1e-5, parts), rows, weight)
