"""What is written out for second order is what torch computes, and has the derivatives of finite differences."""

import pytest
import torch
from torch.nn import functional

from distmeta.compute import attention_twice, norm_twice
from distmeta.compute.layout import Layout
from distmeta.compute.parts import Parts


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


@pytest.mark.parametrize(("dropout", "is_causal"), [(0.0, False), (0.0, True), (0.3, False)])
def test_attention_within_texts(dropout: float, is_causal: bool):
    """Two heads, twelve texts in two grids with padding in both."""
    torch.manual_seed(0)
    lengths = torch.tensor([4, 2, 3, 1, 2, 4, 3, 2, 1, 2, 3, 2])
    layout = Layout.of(lengths.tolist(), 4, [12], Parts((int(lengths.sum()),)), torch.device("cpu"))
    grids = layout.padded_grids
    places = grids.by_head(2)
    assert len(grids.each) == 2
    assert not places.is_token.all()
    tokens = [random(int(lengths.sum()) * 2, 2) for _ in range(3)]

    def attend(*each: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        in_grids = [places.split(rows) for rows in each]
        return places.join(attention_twice.attention(*in_grids, grids.each, 0.7, dropout, is_causal))

    if not dropout:
        first = int(layout.starts[5])
        rows = slice(first, first + int(lengths[5]))
        texts = [t.view(-1, 2, 2)[rows].transpose(0, 1) for t in tokens]
        wanted = functional.scaled_dot_product_attention(*texts, is_causal=is_causal, scale=0.7).transpose(0, 1)
        torch.testing.assert_close(attend(*tokens).view(-1, 2, 2)[rows], wanted)
    assert has_both_derivatives(attend, *tokens)
