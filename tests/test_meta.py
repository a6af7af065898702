"""The learning core against references that are written out here in plain autograd, in double precision."""

import pytest
import torch
from torch.func import functional_call

from distmeta.meta import Learner, Work, adapt, task_gradient
from distmeta.meta.config import MetaConfig
from distmeta.models import Network, TaskBatch, TokenBatch
from tests.helpers import random_task, task_batch, tiny_network

INNER_LR, INNER_STEPS = 0.05, 3


def reference_gradient(
    network: Network, task: TaskBatch, adapted: list[str], second_order: bool
) -> tuple[dict[str, torch.Tensor], float, list[float]]:
    """MAML's update written from the paper for one task: float64, one loop, no code of ours but the parameter names."""
    model = network.model.double()
    theta = {name: value.detach().double().requires_grad_() for name, value in network.named_parameters()}

    def features(parameters: dict[str, torch.Tensor], batch: TokenBatch) -> torch.Tensor:
        weights = {k.removeprefix("model."): v for k, v in parameters.items() if k.startswith("model.")}
        for key in {k.rsplit("/", 1)[0] for k in parameters if k.startswith("lora.")}:
            a, b = parameters[f"{key}/a"], parameters[f"{key}/b"]
            name, start = key.removeprefix("lora.").rsplit("/", 1)
            name = name.replace("/", ".").removeprefix("model.")
            delta = network.lora_scale * b @ a
            if "c_attn" in name:  # (in, 3 * out)
                full = torch.zeros_like(weights[name])
                full[:, int(start) : int(start) + delta.shape[0]] = delta.t()
                delta = full
            weights[name] = weights[name] + delta
        out = functional_call(
            model,
            weights,
            kwargs={
                "input_ids": batch.input_ids,
                "attention_mask": batch.attention_mask,
                "output_hidden_states": True,
            },
        )
        hidden = out.hidden_states[-1]
        return torch.stack([row[: int(n)].mean(0) for row, n in zip(hidden, batch.attention_mask.sum(1), strict=True)])

    def loss(parameters, w, b, batch, labels):
        scores = features(parameters, batch) @ w.t() + b
        return -(scores.log_softmax(1)[torch.arange(len(labels)), labels]).mean()

    phi = dict(theta)
    w = torch.zeros(task.n_way, network.hidden_size, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(task.n_way, dtype=torch.float64, requires_grad=True)
    losses = []
    for _ in range(INNER_STEPS):
        value = loss(phi, w, b, task.support, task.support_labels)
        losses.append(float(value.detach()))
        wanted = [phi[name] for name in adapted] + [w, b]
        steps = torch.autograd.grad(value, wanted, create_graph=True, allow_unused=True, materialize_grads=True)
        if not second_order:
            steps = [step.detach() for step in steps]
        phi |= {name: phi[name] - INNER_LR * step for name, step in zip(adapted, steps, strict=False)}
        w, b = w - INNER_LR * steps[-2], b - INNER_LR * steps[-1]
    outer = loss(phi, w, b, task.query, task.query_labels)
    # With detached steps d phi / d theta is the identity, which is what first order means.
    gradients = torch.autograd.grad(outer, list(theta.values()), allow_unused=True)
    return {n: g for n, g in zip(theta, gradients, strict=True) if g is not None}, float(outer), losses


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("adapt_what", ["all", "lora", "head"])
@pytest.mark.parametrize("second_order", [False, True])
def test_meta_gradient_equals_the_reference(model_type, adapt_what, second_order):
    def make():
        return tiny_network(model_type, lora_rank=4 if adapt_what == "lora" else 0)

    network = make()
    names = network.adapted_names(adapt_what)
    batch = task_batch(random_task())
    result = task_gradient(
        network.skeleton(),
        dict(network.named_parameters()),
        batch,
        adapted_names=names,
        inner_lr=INNER_LR,
        inner_steps=INNER_STEPS,
        second_order=second_order,
    )
    expected, query_loss, support_losses = reference_gradient(make(), batch, names, second_order)
    assert result.query_loss == pytest.approx(query_loss, abs=1e-6)
    assert result.support_losses == pytest.approx(support_losses, abs=1e-6)
    assert result.gradients.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert torch.allclose(result.gradients[name].double(), gradient, rtol=1e-4, atol=1e-5 * scale), name


def test_second_order_is_not_first_order():
    network = tiny_network("bert")
    arguments = {"adapted_names": network.adapted_names("all"), "inner_lr": INNER_LR, "inner_steps": INNER_STEPS}
    batch = task_batch(random_task())
    first, second = (
        task_gradient(
            network.skeleton(), dict(network.named_parameters()), batch, second_order=second_order, **arguments
        )
        for second_order in (False, True)
    )
    name = "model.bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.allclose(first.gradients[name], second.gradients[name], rtol=1e-3)


def test_the_meta_parameters_are_left_as_they_were():
    network = tiny_network("bert")
    parameters = {name: value.detach().clone() for name, value in network.named_parameters()}
    before = {name: value.clone() for name, value in parameters.items()}
    for second_order in (False, True):
        task_gradient(
            network.skeleton(),
            parameters,
            task_batch(random_task()),
            adapted_names=network.adapted_names("all"),
            inner_lr=INNER_LR,
            inner_steps=2,
            second_order=second_order,
        )
    assert all(torch.equal(parameters[name], before[name]) for name in before)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_second_order_works_with_and_without_dropout(model_type, dropout):
    """Case A1: fused attention has no second derivative, which shows only while dropout is off."""
    network = tiny_network(model_type, dropout=dropout)
    skeleton = network.skeleton().train()
    learner = Learner(skeleton, MetaConfig(algorithm="maml", inner_steps=2, lm_weight=0.0), "fp32", seed=0)
    gradients, metrics = learner.gradient(
        dict(network.named_parameters()), [Work(0, task_batch(random_task()), None)], meta_batch_size=1
    )
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert metrics["query_loss"] > 0


def test_shares_add_up_to_the_whole_whoever_computes_them():
    network = tiny_network("bert", dropout=0.1)
    parameters = dict(network.named_parameters())
    learner = Learner(network.skeleton().train(), MetaConfig(lm_weight=0.0), "fp32", seed=3)
    work = [Work(index, task_batch(random_task(index)), None) for index in range(4)]
    whole, metrics = learner.gradient(parameters, work, meta_batch_size=4)
    shares = [learner.gradient(parameters, part, meta_batch_size=4) for part in (work[1:], work[:1])]
    for name, gradient in whole.items():
        assert torch.allclose(gradient, sum(share[0][name] for share in shares), atol=1e-7), name
    assert metrics["query_loss"] == pytest.approx(sum(share[1]["query_loss"] for share in shares))


def test_bf16_keeps_fast_weights_and_small_updates():
    """Case C2: the arithmetic is bf16, what is updated is fp32."""
    network = tiny_network("bert")
    parameters = dict(network.named_parameters())
    batch = task_batch(random_task())
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        adapted = adapt(
            network.skeleton(),
            parameters,
            batch.support,
            batch.support_labels,
            3,
            adapted_names=network.adapted_names("all"),
            inner_lr=0.05,
            inner_steps=3,
        )
    norms = [name for name in adapted.parameters if "LayerNorm.weight" in name and "cls" not in name]
    assert norms
    for name in norms:
        change = (adapted.parameters[name] - parameters[name]).abs()
        assert adapted.parameters[name].dtype == torch.float32
        assert change.max() < 2**-8, "large enough for bf16 to hold: the test would say nothing"
        assert (change > 0).float().mean() > 0.9, name


def test_first_order_memory_does_not_grow_with_inner_steps():
    """Case A4: one step's graph at a time, counted in numbers kept for the backward pass."""
    network = tiny_network("bert")
    batch = task_batch(random_task())

    def peak(inner_steps: int) -> int:
        live = [0, 0]

        class Saved:
            def __init__(self, tensor: torch.Tensor) -> None:
                self.tensor, self.size = tensor, tensor.numel()
                live[0] += self.size
                live[1] = max(live)

            def __del__(self) -> None:
                live[0] -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda packed: packed.tensor):
            task_gradient(
                network.skeleton(),
                dict(network.named_parameters()),
                batch,
                adapted_names=network.adapted_names("all"),
                inner_lr=INNER_LR,
                inner_steps=inner_steps,
                second_order=False,
            )
        return live[1]

    assert peak(2) == pytest.approx(peak(20), rel=0.01)
