"""What each task has, spread over its rows and summed over them, with a product a task and with batched ones."""

import pytest
import torch

from distmeta.compute import parts as module
from distmeta.compute.parts import Parts


@pytest.fixture(params=["a product a task", "batched"])
def sizes(request, monkeypatch):
    """Of parts, which where products are batched are filled up to one size."""
    if request.param == "batched":
        monkeypatch.setattr(module, "BATCHED_ON", {"cpu"})
        return (501, 501, 501)
    return (3, 501, 20)


def test_spread_and_sums(sizes):
    parts, values = Parts(sizes), torch.randn(3, 4, dtype=torch.float64)
    rows = torch.cat([value.expand(size, 4) for value, size in zip(values, sizes, strict=True)])
    assert torch.equal(parts.spread(values), rows)
    assert parts.numbers(rows).tolist() == [task for task, size in enumerate(sizes) for _ in range(size)]
    torch.testing.assert_close(parts.sums(rows), torch.tensor(sizes)[:, None] * values)


def test_sums_of_half_precision_lose_nothing(sizes):
    """Where bfloat16 has 8 bits for what takes 9."""
    sums = Parts(sizes).sums(torch.ones(sum(sizes), 2, dtype=torch.bfloat16))
    assert sums.dtype == torch.float32
    assert sums[1].tolist() == [501, 501]
