"""Products that go to oneDNN, against torch's own."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from distmeta.compute import large_products
from distmeta.meta import Learner, Work
from tests.helpers import meta_config, random_task, task_batch, tiny_network
from tests.meta_cases import relative_error


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_products, "LEAST", 1)
    monkeypatch.setattr(large_products, "is_faster_here", lambda: True)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def first_and_second_derivatives(linear, rows: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    by = [rows, weight] if bias is None else [rows, weight, bias]
    out = linear(rows, weight, bias)
    first = torch.autograd.grad(out.sin().sum(), by, create_graph=True)
    second = torch.autograd.grad(sum(each.square().sum() for each in first), by)
    return [out, *first, *second]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 6), (1, 7, 6)])
def test_a_large_product_and_its_derivatives_are_those_of_a_linear_layer(shape: tuple[int, ...], has_bias: bool):
    torch.manual_seed(0)
    given = random(*shape), random(5, 6), random(5) if has_bias else None
    found, expected = (
        first_and_second_derivatives(linear, *given) for linear in (large_products.linear, functional.linear)
    )
    assert found[0].grad_fn.name() == "_LinearBackward"
    for each, other in zip(found, expected, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), Conv1D(5, 6)])
def test_layers_take_rows_that_way_while_the_context_is_entered(layer: nn.Module):
    rows = torch.randn(1, 7, 6)
    expected = layer(rows)
    with large_products.large_products(large_products.linear_layers(nn.Sequential(layer))):
        found = layer(rows)
    assert found.grad_fn.name() == "_LinearBackward"
    assert layer(rows).grad_fn.name() != "_LinearBackward"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize(("algorithm", "adapt"), [("anil", "head"), ("maml", "last_k"), ("maml", "bias")])
def test_a_packed_network_takes_shared_layers_that_way(
    model_type: str, algorithm: str, adapt: str, monkeypatch: pytest.MonkeyPatch
):
    network = tiny_network(model_type)
    network.computation = "packed"
    parameters = dict(network.named_parameters())
    config = meta_config(algorithm=algorithm, adapt=adapt, inner_lr=0.1, lm_weight=0.0)
    learner = Learner(network, config, "fp32", 0)
    work = [Work(index, task_batch(random_task(index)), None) for index in range(2)]
    made, product = [], large_products._Linear.apply
    monkeypatch.setattr(large_products._Linear, "apply", lambda *given: made.append(1) or product(*given))
    found, _ = learner.gradient(parameters, work, 2)
    assert made
    monkeypatch.setattr(large_products, "LEAST", 2**60)
    expected, _ = learner.gradient(parameters, work, 2)
    assert relative_error(found, expected)[0] < 1e-4


def test_what_is_small_or_in_another_precision_is_left_to_torch(monkeypatch: pytest.MonkeyPatch):
    rows, weight = random(7, 6), random(5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert large_products.linear(rows, weight, None).grad_fn.name() != "_LinearBackward"
    assert large_products.linear(rows.double(), weight.double(), None).dtype == torch.float64
    monkeypatch.setattr(large_products, "LEAST", 7 * 6 * 5 + 1)
    assert large_products.linear(rows, weight, None).grad_fn.name() != "_LinearBackward"


def test_a_processor_without_avx512_is_left_to_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not large_products.is_faster_here.__wrapped__()
    monkeypatch.setattr(large_products, "LEAST", 1)
    monkeypatch.setattr(large_products, "is_faster_here", lambda: False)
    assert large_products.linear(random(7, 6), random(5, 6), None).grad_fn.name() != "_LinearBackward"


def test_rows_are_not_kept_for_a_weight_that_is_not_trained():
    rows, weight = random(7, 6), torch.randn(5, 6)
    saved = large_products.linear(rows, weight, None).grad_fn.saved_tensors
    assert saved[0] is None
    assert saved[1] is weight


@pytest.mark.slow
def test_products_of_ever_new_lengths_take_no_more_memory():
    """oneDNN keeps what it compiles: 300 lengths would take 300 MB and more."""
    code = """
import torch
from distmeta.compute import large_products
large_products.is_faster_here = lambda: True
def held():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024
weight, rows = torch.randn(1024, 256), torch.randn(2048, 256)
for length in range(700, 1300):
    large_products.linear(rows[:length], weight, None)
    if length == 700:
        before = held()
print(held() - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 100
