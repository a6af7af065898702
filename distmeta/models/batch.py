"""Token batches as the network takes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from distmeta.tasks.episode import Example, Task


@dataclass(frozen=True)
class TokenBatch:
    """Sequences, padded on the right to the longest."""

    input_ids: torch.Tensor
    """(sequences, length), int64."""
    attention_mask: torch.Tensor
    """(sequences, length), int64: 1 for a token, 0 for padding."""
    mask_positions: torch.Tensor
    """(sequences,), int64: where the class word is hidden, -1 for nowhere."""
    num_tokens: int
    """Tokens that are no padding."""

    def split(self, size: int) -> Iterator["TokenBatch"]:
        """The same sequences in batches of at most `size`."""
        for start in range(0, len(self.input_ids), size):
            part = slice(start, start + size)
            mask = self.attention_mask[part]
            yield TokenBatch(self.input_ids[part], mask, self.mask_positions[part], int(mask.sum()))


@dataclass(frozen=True)
class TaskBatch:
    """A task as tensors."""

    support: TokenBatch
    support_labels: torch.Tensor
    query: TokenBatch
    query_labels: torch.Tensor
    n_way: int


def collate_tokens(
    sequences: Sequence[Sequence[int]], pad_token_id: int, device: torch.device, mask_positions: Sequence[int] = ()
) -> TokenBatch:
    """Pads token sequences into one batch on `device`."""
    lengths = [len(sequence) for sequence in sequences]
    input_ids = torch.full((len(sequences), max(lengths)), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        attention_mask[row, : len(sequence)] = 1
    positions = torch.tensor(mask_positions or [-1] * len(sequences), dtype=torch.long)
    return TokenBatch(input_ids.to(device), attention_mask.to(device), positions.to(device), sum(lengths))


def collate_task(task: Task, pad_token_id: int, device: torch.device) -> TaskBatch:
    """A drawn task as tensors on `device`."""

    def half(examples: Sequence[Example]) -> tuple[TokenBatch, torch.Tensor]:
        tokens = collate_tokens(
            [example.input_ids for example in examples],
            pad_token_id,
            device,
            [example.mask_position for example in examples],
        )
        return tokens, torch.tensor([example.label for example in examples], device=device)

    return TaskBatch(*half(task.support), *half(task.query), task.n_way)
