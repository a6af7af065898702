"""Which rows of a packed batch belong to which task."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

BATCHED_ON = {"cuda"}
"""Kinds of device on which one batched product over tasks is faster than a product a task: each call is a launch."""


def is_batched(device: torch.device) -> bool:
    """Whether the tasks of a row go through batched products, for which each has as many rows as any other."""
    return device.type in BATCHED_ON


@dataclass(frozen=True)
class Parts:
    """How many rows of a tensor belong to each task, in the tasks' order."""

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, tokens: Sequence[int], device: torch.device, least: int = 0) -> "Parts":
        """The parts of tasks with so many tokens each; where products are batched, filled up to the largest, or to
        `least` if that is more."""
        return cls((max(*tokens, least),) * len(tokens) if is_batched(device) else tuple(tokens))

    def split(self, rows: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
        """The rows of each task."""
        return rows.split_with_sizes(self.sizes, dim)

    def batch(self, rows: Tensor) -> Tensor:
        """(rows, width) as (tasks, rows of a task, width), of parts that are filled up."""
        return rows.view(len(self.sizes), self.sizes[0], *rows.shape[1:])

    def sums(self, rows: Tensor) -> Tensor:
        """The sum over the rows of each task: (rows, width) to (tasks, width), of half precision in fp32."""
        dtype = torch.promote_types(rows.dtype, torch.float32)
        if is_batched(rows.device):
            return self.batch(rows).sum(1, dtype=dtype)
        return rows.new_zeros(len(self.sizes), rows.shape[1], dtype=dtype).index_add_(0, self._numbers, rows.to(dtype))

    def spread(self, values: Tensor) -> Tensor:
        """The reverse: each row gets what its task has."""
        if is_batched(values.device):
            spread = values[:, None].expand(-1, self.sizes[0], -1)
            return spread.clone(memory_format=torch.contiguous_format).flatten(0, 1)
        return values.index_select(0, self._numbers)

    def numbers(self, like: Tensor) -> Tensor:
        """The task of each row, (rows,), on the device of `like`."""
        if is_batched(like.device):
            return torch.arange(len(self.sizes), device=like.device)[:, None].expand(-1, self.sizes[0]).flatten()
        return self._numbers

    @cached_property
    def _numbers(self) -> Tensor:
        """Of rows on the CPU."""
        return torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
