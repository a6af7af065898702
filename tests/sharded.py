"""What the tests of partitioned weights share: networks, tasks, and MAML's update as the paper has it.

It is written out here in autograd, in float64 and one process.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from distmeta.compute.batch import TaskBatch, TokenBatch
from distmeta.engine.config import EngineConfig
from distmeta.engine.sharded import ShardedEngine
from distmeta.engine.state import EngineState
from distmeta.meta.language_model import LanguageModelBatch
from distmeta.models import Network
from tests.helpers import random_task, state_on_first_worker, task_batch, tiny_network

CPU = torch.device("cpu")
INNER_LR, INNER_STEPS = 0.05, 3
LEARNING_RATE, WEIGHT_DECAY, CLIPPING = 1e-3, 0.1, 0.1

Tensors = dict[str, torch.Tensor]


def make(model_type: str, adapt: str, dropout: float = 0.0) -> tuple[Network, list[str]]:
    """A network, and the names of what is adapted beside the head."""
    network = tiny_network(model_type, lora_rank=4 if adapt == "lora" else 0, dropout=dropout)
    names = [name for name, _ in network.named_parameters()]
    if adapt == "lora":
        return network, [name for name in names if name.startswith("lora.")]
    if adapt == "bias":
        # In groups of like length a task of one text takes fewer passes than others: the engine must not do that.
        network.computation = "bucketed"
        return network, [n for n in names if n.endswith(".bias") or "LayerNorm" in n or ".ln_" in n]
    network.computation = "packed"
    # The word embedding is tied to the language model's head, so two modules own it.
    chosen = ("word_embeddings.weight", "wte.weight", "intermediate.dense.weight", "mlp.c_fc.weight")
    return network, [n for n in names if n.endswith(chosen)]


def tasks(count: int, first: int = 0) -> list[TaskBatch]:
    return [task_batch(random_task(first + index)) for index in range(count)]


def share(everything: Sequence[Any], counts: Sequence[int]) -> list[Any]:
    """What this worker gets where they get `counts`."""
    rank = torch.distributed.get_rank()
    start = sum(counts[:rank])
    return list(everything[start : start + counts[rank]])


def texts() -> list[LanguageModelBatch]:
    """Three, of which the second asks for nothing."""
    batches = []
    for index, count in enumerate((4, 0, 2)):
        tokens = task_batch(random_task(index)).support
        rows, columns = torch.arange(count), torch.ones(count, dtype=torch.long)
        batches.append(LanguageModelBatch(tokens, (rows, columns), 30 + torch.arange(count)))
    return batches


# The reference


def features(network: Network, parameters: Tensors, batch: TokenBatch) -> torch.Tensor:
    """Mean of the last hidden states, with W + alpha / r * B A for an adapted W."""
    weights = {name.removeprefix("model."): p for name, p in parameters.items() if name.startswith("model.")}
    for name, a in parameters.items():
        if name.startswith("lora.") and name.endswith("/a"):
            target, start, _ = name.removeprefix("lora.model/").rsplit("/", 2)
            target, update = target.replace("/", "."), 2.0 * parameters[f"{name[:-1]}b"] @ a  # alpha 8, rank 4
            if "c_attn" in target:
                update = nn.functional.pad(update.t(), (int(start), 64 - int(start)))
            weights[target] = weights[target] + update
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "output_hidden_states": True}
    hidden = functional_call(network.model, weights, kwargs=arguments).hidden_states[-1]
    return torch.stack([row[: int(n)].mean(0) for row, n in zip(hidden, batch.attention_mask.sum(1), strict=True)])


def reference(
    network: Network, theta: Tensors, adapted: list[str], task: TaskBatch, second_order: bool, seed: int | None = None
) -> tuple[Tensors, float]:
    """A task's meta-gradient, by a backward pass through the inner steps, and its query loss."""
    theta = {name: value.detach().requires_grad_() for name, value in theta.items()}
    dtype = next(iter(theta.values())).dtype

    def loss(phi: Tensors, batch: TokenBatch, labels: torch.Tensor, number: int) -> torch.Tensor:
        if seed is not None:
            torch.manual_seed(seed + number)
        scores = features(network, phi, batch) @ phi["head.weight"].t() + phi["head.bias"]
        return -scores.log_softmax(1)[torch.arange(len(labels)), labels].mean()

    head = {
        "head.weight": torch.zeros(task.n_way, network.hidden_size, dtype=dtype, requires_grad=True),
        "head.bias": torch.zeros(task.n_way, dtype=dtype, requires_grad=True),
    }
    phi = {**theta, **head}
    fast = [*adapted, *head]
    for step in range(INNER_STEPS):
        support = loss(phi, task.support, task.support_labels, step)
        gradients = torch.autograd.grad(
            support, [phi[n] for n in fast], create_graph=True, allow_unused=True, materialize_grads=True
        )
        if not second_order:
            gradients = tuple(gradient.detach() for gradient in gradients)
        phi = phi | {n: phi[n] - INNER_LR * gradient for n, gradient in zip(fast, gradients, strict=True)}
    query = loss(phi, task.query, task.query_labels, INNER_STEPS)
    found = torch.autograd.grad(query, list(theta.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(theta, found, strict=True)), float(query.detach())


def reference_mean(
    network: Network, theta: Tensors, adapted: list[str], batch: list[TaskBatch], second_order: bool
) -> tuple[Tensors, float]:
    results = [reference(network, theta, adapted, task, second_order) for task in batch]
    mean = {name: sum(gradients[name] for gradients, _ in results) / len(batch) for name in theta}
    return mean, sum(loss for _, loss in results) / len(batch)


def in_float64(network: Network) -> tuple[Network, Tensors]:
    network.model.double()
    return network, {name: parameter.detach().double() for name, parameter in network.named_parameters()}


def norm(values: Tensors) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in values.values()))


def difference(one: Tensors, other: Tensors) -> float:
    """L2 norm of the difference, as a share of the other's."""
    assert one.keys() == other.keys()
    return norm({name: one[name].double() - other[name] for name in one}) / norm(other)


# The workers


def engine_of(
    network: Network, adapted: Sequence[str], clipping: float = 0.0, state: EngineState | None = None, **config: Any
) -> ShardedEngine:
    settings = EngineConfig(**{"zero_stage": 3, "gradient_clipping": clipping, **config})
    return ShardedEngine(network, settings, adapted_names=adapted, weight_decay=WEIGHT_DECAY, device=CPU, state=state)


def outer_step(
    engine: ShardedEngine, batch: list[TaskBatch], counts: Sequence[int], second_order: bool, **more: Any
) -> tuple[float, float]:
    """Norm of the gradient, and the mean query loss over all workers."""
    gradient_norm, metrics = engine.meta_gradient_step(
        share(batch, counts),
        len(batch),
        LEARNING_RATE,
        inner_lr=INNER_LR,
        inner_steps=INNER_STEPS,
        second_order=second_order,
        **more,
    )
    loss = torch.tensor(metrics.get("query_loss", 0.0), dtype=torch.float64)
    torch.distributed.all_reduce(loss)
    return gradient_norm, float(loss)


def gradient_of_first_step(engine: ShardedEngine) -> Tensors:
    """What AdamW got: its mean is a tenth of it after one step."""
    state = state_on_first_worker(engine)
    return {} if state is None else {name: 10 * value.double() for name, value in state.exp_avg.items()}
