"""What every contestant is given: the model, its weights, the tasks, and what is asked for."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, BertConfig, PreTrainedModel

from distmeta.compute.batch import TaskBatch, TokenBatch, collate_task
from distmeta.tasks.episode import Example, Task

Weights = dict[str, torch.Tensor]
"""Tensors by their name in `BertModel`; the adapters of a projection are `<module>.lora_a` and `<module>.lora_b`."""

LORA_RANK, LORA_ALPHA = 8, 16.0
LORA_MODULES = ("query", "value")
N_WAY = 5
PAD_TOKEN = 0
SHORTEST, LONGEST, MEAN_LENGTH = 6, 48, 20
SPREAD = 0.5
"""Standard deviation of the logarithm of a sentence's length, before it is clipped."""


class UnavailableError(Exception):
    """A contestant cannot take part here; the message is a line that says why and what to do."""


@dataclass(frozen=True)
class Workload:
    """An algorithm and what it adapts beside the head."""

    algorithm: Literal["fomaml", "anil", "maml"]
    adapt: Literal["all", "lora", "head"]

    @property
    def second_order(self) -> bool:
        """Whether the meta-gradient goes through the inner steps."""
        return self.algorithm != "fomaml"

    def trains(self, name: str) -> bool:
        """Whether the meta-gradient is asked for a weight: the adapters' alone where there are any."""
        return self.adapt != "lora" or ".lora_" in name


WORKLOADS = {
    "fomaml/all": Workload("fomaml", "all"),
    "fomaml/lora": Workload("fomaml", "lora"),
    "fomaml/head": Workload("fomaml", "head"),
    "anil": Workload("anil", "head"),
    "maml/all": Workload("maml", "all"),
}


@dataclass(frozen=True)
class Shape:
    """Size of the BERT that all use; its head size is 64, its feed-forward layers are four times as wide."""

    layers: int = 4
    width: int = 256
    vocabulary: int = 12000
    positions: int = 512

    def config(self) -> BertConfig:
        """The same as transformers has it, without dropout."""
        return BertConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // 64,
            intermediate_size=4 * self.width,
            max_position_embeddings=self.positions,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )


@dataclass(frozen=True)
class Work:
    """What a contestant computes, and where."""

    workload: Workload
    shape: Shape
    inner_lr: float
    inner_steps: int
    precision: Literal["fp32", "bf16", "fp64"]
    """fp64 is for the reference alone."""
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and gradients."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def autocast(self) -> AbstractContextManager[None]:
        """For one forward pass each time, so that no cast outlives the update of the weight that it was made of."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class Outcome:
    """What a contestant returns for a meta-batch."""

    gradients: Weights
    """Of the mean query loss over the tasks."""
    query_loss: float
    """Mean over the tasks (nats)."""
    inner_seconds: float | None = None
    """Time of the inner loops, where it can be told apart."""


Contestant = Callable[[Weights, Sequence[TaskBatch]], Outcome]

LossAndGradient = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
"""The query loss of a task, and its gradient by each weight of the encoder, in their order."""


def mean_over_tasks(
    tasks: Sequence[TaskBatch], gradient: Callable[[TaskBatch], LossAndGradient], names: Sequence[str]
) -> Outcome:
    """The outcome of a meta-batch whose tasks are computed one after the other.

    Args:
        tasks: the meta-batch.
        gradient: computes one task.
        names: of the weights.
    """
    total: list[torch.Tensor] = []
    query_loss = 0.0
    for task in tasks:
        loss, gradients = gradient(task)
        query_loss += float(loss.detach()) / len(tasks)
        if total:
            torch._foreach_add_(total, gradients)
        else:
            total = list(gradients)
    torch._foreach_div_(total, len(tasks))
    return Outcome(dict(zip(names, total, strict=True)), query_loss)


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank update (Hu et al. 2021, https://arxiv.org/abs/2106.09685) beside its weight."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.lora_a = nn.Parameter(torch.zeros(LORA_RANK, in_features))
        self.lora_b = nn.Parameter(torch.zeros(out_features, LORA_RANK))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """W x + b + alpha / r * B A x."""
        update = functional.linear(functional.linear(input, self.lora_a), self.lora_b)
        return super().forward(input) + LORA_ALPHA / LORA_RANK * update


def encoder(work: Work) -> PreTrainedModel:
    """A BERT without weights of worth: those of `Weights` are put into it.

    Attention is the fused one, or the plain one where a second derivative is taken of it, which the fused has not.
    """
    twice = work.workload.algorithm == "maml"
    model: PreTrainedModel = AutoModel.from_config(
        work.shape.config(), attn_implementation="eager" if twice else "sdpa", add_pooling_layer=False
    )
    if work.workload.adapt == "lora":
        for module in list(model.modules()):
            for name, child in module.named_children():
                if name in LORA_MODULES and isinstance(child, nn.Linear):
                    setattr(module, name, LoraLinear(child.in_features, child.out_features))
    nn.Module.to(model, work.device, work.dtype)
    return model.eval()


def put_weights(model: nn.Module, weights: Weights) -> None:
    """Make the model's parameters share the memory of these weights."""
    for name, parameter in model.named_parameters():
        parameter.data = weights[name]


def new_weights(work: Work, seed: int) -> Weights:
    """A new BERT's weights; the adapters are as after some training, since at zero half of their work is unseen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = encoder(work)
        weights = {name: value.detach().clone() for name, value in model.named_parameters()}
        for name, value in weights.items():
            if ".lora_" in name:
                value.copy_(torch.randn(value.shape) * (0.05 if name.endswith("lora_b") else value.shape[1] ** -0.5))
    return weights


class Classifier(nn.Module):
    """The encoder with a linear head on its mean hidden state, as the libraries take a model: one module."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.encoder = encoder(work)
        self.head = nn.Linear(work.shape.width, N_WAY).to(work.device, work.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Scores of each text for each class, (sequences, N_WAY)."""
        return functional.linear(features(self.encoder, input_ids, attention_mask), self.head.weight, self.head.bias)

    def loss(self, work: Work, batch: TokenBatch, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy (nats)."""
        with work.autocast():
            scores = self(batch.input_ids, batch.attention_mask)
        return functional.cross_entropy(scores.to(work.dtype), labels)


def features(model: Callable[..., Any], input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean hidden state of each text's tokens, (sequences, width), not below fp32."""
    hidden: torch.Tensor = model(input_ids=input_ids, attention_mask=mask).last_hidden_state
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    weight = mask[:, :, None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


def natural_lengths() -> np.ndarray:
    """Probability of each length from SHORTEST to LONGEST: a lognormal, clipped, whose mean is MEAN_LENGTH."""
    lengths = np.arange(SHORTEST, LONGEST + 1)

    def probabilities(mu: float) -> np.ndarray:
        below = [0.5 * (1 + math.erf((math.log(n + 0.5) - mu) / SPREAD / 2**0.5)) for n in lengths]
        below[-1] = 1.0
        return np.diff(below, prepend=0.0)

    low, high = math.log(SHORTEST), math.log(LONGEST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probabilities(middle) @ lengths < MEAN_LENGTH else (low, middle)
    return probabilities(low)


def draw_tasks(
    count: int, shots: int, queries: int, lengths: str, shape: Shape, seed: int, device: torch.device
) -> list[TaskBatch]:
    """Tasks of random tokens, with a token of its own a class so that there is something to learn.

    Args:
        count: number of tasks.
        shots: support sentences a class.
        queries: query sentences a class.
        lengths: `natural` or `equal`.
        shape: how many tokens there are.
        seed: of lengths and tokens.
        device: of the tensors.
    """
    random = np.random.default_rng([seed, shots])
    probabilities = natural_lengths()

    def example(label: int, number: int) -> Example:
        drawn = random.choice(np.arange(SHORTEST, LONGEST + 1), p=probabilities)
        ids = random.integers(N_WAY + 5, shape.vocabulary, drawn if lengths == "natural" else MEAN_LENGTH)
        ids[random.integers(len(ids))] = 5 + label
        return Example(f"{label}.{number}", label, "", tuple(int(i) for i in ids), -1)

    tasks = []
    for index in range(count):
        support, query = (
            tuple(example(label, number) for label in range(N_WAY) for number in numbers)
            for numbers in (range(shots), range(shots, shots + queries))
        )
        task = Task(index, "train", tuple("abcde"[:N_WAY]), support, query)
        tasks.append(collate_task(task, PAD_TOKEN, device))
    return tasks
