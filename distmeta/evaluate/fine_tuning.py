"""Fine-tuning a network on each support set: what its users do who adapt all weights to their task."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from distmeta.compute.batch import TokenBatch, collate_task
from distmeta.compute.precision import passes_in
from distmeta.evaluate.head import Head
from distmeta.evaluate.networks import Place, load
from distmeta.evaluate.score import EpisodeScore
from distmeta.models import Network, Parameters
from distmeta.tasks.episode import Task

STEPS = 10
LEARNING_RATE = 5e-5
HEAD_RATE = 1e-3
WEIGHT_DECAY = 0.01
MOST_TEXTS = 32
"""Texts of a step."""


@dataclass(frozen=True, slots=True)
class FineTuningUnit:
    """An episode, and the network that is fine-tuned on it."""

    place: Place
    task: Task


def fine_tune(unit: FineTuningUnit) -> EpisodeScore:
    """Score the query texts after fine-tuning on the support set."""
    scorer = load(unit.place)
    device = next(iter(scorer.parameters.values())).device
    batch = collate_task(unit.task, scorer.pad_token_id, device)
    was_training = scorer.network.training
    scorer.network.eval()
    try:
        with passes_in(scorer.precision):
            started = time.perf_counter()
            # Of the word embedding the rows of these texts alone, which for so few texts is most of the work.
            local = scorer.network.localized(scorer.parameters, [batch.support, batch.query])
            support, query = local.batches
            tuned, head = tuned_weights(scorer.network, local.parameters, support, batch.support_labels, batch.n_way)
            seconds = time.perf_counter() - started
            with torch.no_grad():
                parts = [head.scores(scorer.network.features(tuned, part)) for part in query.split(MOST_TEXTS)]
    finally:
        scorer.network.train(was_training)
    predictions = torch.cat(parts).argmax(1).cpu().numpy()
    return EpisodeScore(np.asarray(batch.query_labels.cpu()), predictions, None, seconds)


def tuned_weights(
    network: Network, parameters: Parameters, support: TokenBatch, labels: Tensor, n_way: int
) -> tuple[Parameters, Head]:
    """All weights after fine-tuning on a support set, and the head's."""
    weights = {
        name: value.detach().clone().requires_grad_(name.startswith("model.") and value.is_floating_point())
        for name, value in parameters.items()
    }
    with torch.no_grad():
        features = torch.cat([network.features(weights, part) for part in support.split(MOST_TEXTS)])
        head = Head.of_regression(features, labels, n_way)
    head.weight.requires_grad_()
    head.bias.requires_grad_()
    body = [value for value in weights.values() if value.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": body, "lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY},
            {"params": [head.weight, head.bias], "lr": HEAD_RATE, "weight_decay": 0.0},
        ],
        fused=True,
    )
    for part in _steps(len(labels)):
        part = part.to(labels.device)
        optimizer.zero_grad()
        scores = head.scores(network.features(weights, support.take(part)))
        functional.cross_entropy(scores, labels[part]).backward()
        torch.nn.utils.clip_grad_norm_([*body, head.weight, head.bias], 1.0)
        optimizer.step()  # a weight that nothing depends on has no gradient, and stays
    return {name: value.detach() for name, value in weights.items()}, head


def _steps(texts: int) -> Sequence[Tensor]:
    """The texts of each step: all of them, or, where they are many, batches that go through them at least twice."""
    if texts <= MOST_TEXTS:
        return [torch.arange(texts)] * STEPS
    generator = torch.Generator().manual_seed(0)
    batches: list[Tensor] = []
    while len(batches) < max(STEPS, 2 * texts / MOST_TEXTS):
        batches += torch.randperm(texts, generator=generator).split(MOST_TEXTS)
    return batches
