"""The inner loop: adaptation of fast weights on a task's support set, by plain gradient descent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from distmeta.models import Network, Parameters, TokenBatch


@dataclass(frozen=True)
class Adapted:
    """A network after adaptation to one task."""

    parameters: Parameters
    """All parameters, the fast ones as they are after the last step."""
    head: tuple[torch.Tensor, torch.Tensor]
    """Weight (n_way, hidden_size) and bias (n_way,) of the classification head."""
    support_losses: list[float]
    """Mean cross-entropy on the support set before each step (nats)."""


def zero_head(n_way: int, hidden_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A head that tells no class from another: labels are permuted in every task, so its start must not know them."""
    return torch.zeros(n_way, hidden_size, device=device), torch.zeros(n_way, device=device)


def logits(network: Network, adapted: Adapted, batch: TokenBatch) -> torch.Tensor:
    """Scores of each text for each class: (sequences, n_way)."""
    return functional.linear(network.features(adapted.parameters, batch), *adapted.head)


def adapt(
    network: Network,
    parameters: Parameters,
    support: TokenBatch,
    labels: torch.Tensor,
    n_way: int,
    *,
    adapted_names: Sequence[str],
    inner_lr: float,
    inner_steps: int,
    second_order: bool = False,
) -> Adapted:
    """Takes steps phi <- phi - inner_lr * gradient of the support loss, from the given parameters and a zero head.

    Args:
        network: computes features.
        parameters: meta-parameters theta; they are not changed.
        support: texts to adapt on.
        labels: their classes, (sequences,).
        n_way: number of classes.
        adapted_names: parameters that are fast weights; the head always is one.
        inner_lr: step size.
        inner_steps: number of steps.
        second_order: keep the graph, so that the result can be differentiated with respect to `parameters`.
            Otherwise the graph of one step is held at a time, and the result is cut off from `parameters`.
    """
    if not second_order:
        parameters = {name: value.detach() for name, value in parameters.items()}
    fast = {name: parameters[name] for name in adapted_names}
    fast["head.weight"], fast["head.bias"] = zero_head(n_way, network.hidden_size, labels.device)
    losses: list[float] = []
    for _ in range(inner_steps):
        if not second_order:
            fast = {name: value.detach() for name, value in fast.items()}
        for value in fast.values():
            value.requires_grad_()
        loss = functional.cross_entropy(logits(network, _adapted(parameters, fast, losses), support), labels)
        gradients = torch.autograd.grad(
            loss, list(fast.values()), create_graph=second_order, allow_unused=True, materialize_grads=True
        )
        losses.append(float(loss.detach()))
        fast = {
            name: value - inner_lr * gradient for (name, value), gradient in zip(fast.items(), gradients, strict=True)
        }
    if not second_order:
        fast = {name: value.detach() for name, value in fast.items()}
    return _adapted(parameters, fast, losses)


def _adapted(parameters: Parameters, fast: Parameters, losses: list[float]) -> Adapted:
    body = {name: value for name, value in fast.items() if not name.startswith("head.")}
    return Adapted({**parameters, **body}, (fast["head.weight"], fast["head.bias"]), losses)
