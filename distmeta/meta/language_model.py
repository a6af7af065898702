"""The language-modelling loss beside the tasks: masked for encoders (Devlin et al. 2019), causal for decoders."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from distmeta.compute.batch import TokenBatch, collate_tokens, concatenate
from distmeta.models import Network, Parameters
from distmeta.tasks.draw import generator


@dataclass(frozen=True)
class LanguageModelBatch:
    """Sequences with the positions that are scored."""

    tokens: TokenBatch
    positions: tuple[torch.Tensor, torch.Tensor]
    """(rows, columns) of the hidden states that predict."""
    targets: torch.Tensor
    """The token ids that they should predict."""


@lru_cache(maxsize=4)
def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def masked_batch(
    segments: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    *,
    mask_rate: float,
    seed: tuple[int | str, ...],
) -> LanguageModelBatch:
    """Hides a share of the tokens, at least one a sequence: 80% of those become the mask, 10% a random token."""
    random = generator(*seed)
    prefix, suffix = special_tokens_around(tokenizer)
    sequences, rows, columns, targets = [], [], [], []
    for row, segment in enumerate(segments):
        sequence = np.array([*prefix, *segment, *suffix])
        maskable = np.flatnonzero(np.isin(sequence, tokenizer.all_special_ids, invert=True))
        if len(maskable) == 0:
            maskable = np.arange(len(sequence))
        count = max(1, round(mask_rate * len(maskable)))
        chosen = np.sort(random.choice(maskable, count, replace=False))
        rows += [row] * count
        columns += chosen.tolist()
        targets += sequence[chosen].tolist()
        fate = random.random(count)
        sequence[chosen[fate < 0.8]] = tokenizer.mask_token_id
        replaced = chosen[(fate >= 0.8) & (fate < 0.9)]
        sequence[replaced] = random.integers(len(tokenizer), size=len(replaced))
        sequences.append(sequence.tolist())
    return _batch(sequences, rows, columns, targets, tokenizer.pad_token_id, device)


def causal_batch(
    segments: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> LanguageModelBatch:
    """Every token but the first is predicted from those before it."""
    prefix, suffix = special_tokens_around(tokenizer)
    sequences = [[*prefix, *segment, *suffix] for segment in segments]
    rows = [row for row, sequence in enumerate(sequences) for _ in sequence[1:]]
    columns = [column for sequence in sequences for column in range(len(sequence) - 1)]
    targets = [token for sequence in sequences for token in sequence[1:]]
    return _batch(sequences, rows, columns, targets, tokenizer.pad_token_id, device)


def _batch(
    sequences: list[list[int]],
    rows: list[int],
    columns: list[int],
    targets: list[int],
    pad_token_id: int,
    device: torch.device,
) -> LanguageModelBatch:
    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    tokens = collate_tokens(sequences, pad_token_id, device)
    return LanguageModelBatch(tokens, (tensor(rows), tensor(columns)), tensor(targets))


def language_model_gradient(
    network: Network, parameters: Parameters, batches: Sequence[LanguageModelBatch], trained: Set[str]
) -> tuple[Parameters, float]:
    """Of the batches' mean cross-entropies a predicted token (nats): the gradient of their sum, for every trained
    parameter that takes part, and the sum."""
    # Of texts of one token a decoder predicts nothing.
    batches = [batch for batch in batches if len(batch.targets)]
    if not batches:
        return {}, 0.0
    parameters = {name: value.detach().requires_grad_(name in trained) for name, value in parameters.items()}
    firsts = np.cumsum([0, *(len(batch.tokens.input_ids) for batch in batches)]).tolist()
    positions = (
        torch.cat([batch.positions[0] + first for batch, first in zip(batches, firsts, strict=False)]),
        torch.cat([batch.positions[1] for batch in batches]),
    )
    tokens = concatenate(*(batch.tokens for batch in batches)) if len(batches) > 1 else batches[0].tokens
    scores = network.language_model_logits(parameters, tokens, positions).split([len(b.targets) for b in batches])
    losses = [functional.cross_entropy(each, batch.targets) for each, batch in zip(scores, batches, strict=True)]
    loss = torch.stack(losses).sum()
    sources = {name: value for name, value in parameters.items() if value.requires_grad}
    gradients = torch.autograd.grad(loss, list(sources.values()), allow_unused=True)
    return (
        {name: gradient for name, gradient in zip(sources, gradients, strict=True) if gradient is not None},
        float(loss.detach()),
    )
