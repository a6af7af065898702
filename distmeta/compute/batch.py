"""Token batches as the network takes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch.nn import functional

from distmeta.compute.layout import Layout
from distmeta.compute.parts import Parts
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
    lengths: tuple[int, ...]
    """Tokens of each sequence, known without asking the device."""
    texts_per_task: tuple[int, ...] = ()
    """Where the sequences are those of several tasks, which have weights of their own: how many each has, in order."""
    least_per_task: int = 0
    """To how many tokens at least each task's part of a packed row is filled up, where products are batched."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are no padding."""
        return sum(self.lengths)

    @cached_property
    def task_numbers(self) -> torch.Tensor:
        """The number of the task of each sequence, (sequences,); 0 where there is one task."""
        sizes = torch.tensor(self._texts)
        return torch.arange(len(sizes)).repeat_interleave(sizes).to(self.input_ids.device)

    @cached_property
    def tokens_of_tasks(self) -> Parts:
        """Which tokens of the packed row belong to which task."""
        lengths = iter(self.lengths)
        tokens = [sum(islice(lengths, texts)) for texts in self._texts]
        return Parts.of(tokens, self.input_ids.device, self.least_per_task)

    @property
    def _texts(self) -> tuple[int, ...]:
        return self.texts_per_task or (len(self.input_ids),)

    @cached_property
    def layout(self) -> Layout:
        """Where each token stands when the texts are packed."""
        longest = self.attention_mask.shape[1]
        return Layout.of(self.lengths, longest, self._texts, self.tokens_of_tasks, self.attention_mask.device)

    def widened(self, longest: int, least_per_task: int) -> "TokenBatch":
        """The same sequences, padded to `longest`, with a packed row that is filled up."""
        more = (0, longest - self.input_ids.shape[1])
        ids, mask = (functional.pad(each, more) for each in (self.input_ids, self.attention_mask))
        return replace(self, input_ids=ids, attention_mask=mask, least_per_task=least_per_task)

    def sequences(self) -> list[list[int]]:
        """The token ids of each sequence, without padding."""
        return [row[:length] for row, length in zip(self.input_ids.tolist(), self.lengths, strict=True)]

    def split(self, size: int) -> Iterator["TokenBatch"]:
        """The same sequences in batches of at most `size`."""
        for part in torch.arange(len(self.input_ids), device=self.input_ids.device).split(size):
            yield self.take(part)

    def take(self, part: torch.Tensor) -> "TokenBatch":
        """The sequences of these numbers, padded no further than to the longest of them."""
        lengths = tuple(self.lengths[number] for number in part.tolist())
        longest = max(lengths)
        mask = self.attention_mask[part, :longest]
        return TokenBatch(self.input_ids[part, :longest], mask, self.mask_positions[part], lengths)


def texts_of_tasks(batch: Any) -> tuple[int, ...]:
    """How many texts each task has, in order, where a batch is that of several; () where it is that of one task, as
    whatever a network of one's own takes always is."""
    return batch.texts_per_task if isinstance(batch, TokenBatch) else ()


def concatenate(*batches: TokenBatch) -> TokenBatch:
    """The sequences of all."""
    longest = max(batch.input_ids.shape[1] for batch in batches)

    def together(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([functional.pad(each, (0, longest - each.shape[1])) for each in values])

    return TokenBatch(
        together([batch.input_ids for batch in batches]),
        together([batch.attention_mask for batch in batches]),
        torch.cat([batch.mask_positions for batch in batches]),
        tuple(length for batch in batches for length in batch.lengths),
        least_per_task=sum(batch.least_per_task * len(batch.texts_per_task or [0]) for batch in batches),
    )


def side_by_side(batches: Sequence[TokenBatch]) -> TokenBatch:
    """The sequences of a batch of each of several tasks, which may have weights of their own."""
    whole = batches[0] if len(batches) == 1 else concatenate(*batches)
    return replace(whole, texts_per_task=tuple(len(batch.input_ids) for batch in batches))


@dataclass(frozen=True)
class HeadRows:
    """Where a head over all classes of training has those of a task, or of several tasks."""

    rows: tuple[torch.Tensor, ...]
    """Of each task the row of each of its classes, by label: (n_way,), int64."""
    spans: tuple[tuple[int, int], ...]
    """Of each task the rows of all classes of its data set: the first one, and the one behind the last."""


@dataclass(frozen=True)
class TaskBatch:
    """A task as tensors, or several tasks of as many classes (see `join`)."""

    support: Any
    """A TokenBatch, or whatever a network of one's own takes."""
    support_labels: torch.Tensor
    """(examples,): int64 for classes, otherwise what the network's output should be."""
    query: Any
    query_labels: torch.Tensor
    n_way: int
    head: HeadRows | None = None
    """Where the algorithm has a head over all classes of training."""

    @property
    def query_sizes(self) -> tuple[int, ...]:
        """Where there are several tasks, how many examples each has in the query set."""
        return texts_of_tasks(self.query)


def join(tasks: Sequence[TaskBatch]) -> TaskBatch:
    """Several tasks of as many classes, to be computed side by side in one row."""
    heads = [task.head for task in tasks if task.head is not None]
    return TaskBatch(
        side_by_side([task.support for task in tasks]),
        torch.cat([task.support_labels for task in tasks]),
        side_by_side([task.query for task in tasks]),
        torch.cat([task.query_labels for task in tasks]),
        tasks[0].n_way,
        HeadRows(*(tuple(sum(each, ())) for each in zip(*((head.rows, head.spans) for head in heads), strict=True)))
        if heads
        else None,
    )


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
    return TokenBatch(input_ids.to(device), attention_mask.to(device), positions.to(device), tuple(lengths))


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
