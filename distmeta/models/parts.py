"""Which rows of a packed batch belong to which task."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """How many rows of a tensor belong to each task, in the tasks' order."""

    sizes: tuple[int, ...]

    def split(self, rows: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
        """The rows of each task."""
        return rows.split(self.sizes, dim)

    def sums(self, rows: Tensor) -> Tensor:
        """The sum over the rows of each task: (rows, width) to (tasks, width)."""
        return self._indicator.to(rows).t() @ rows

    def spread(self, values: Tensor) -> Tensor:
        """The reverse: each row gets what its task has."""
        return self._indicator.to(values) @ values

    @cached_property
    def tasks(self) -> Tensor:
        """The task of each row, (rows,)."""
        return torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))

    @cached_property
    def _indicator(self) -> Tensor:
        return torch.eye(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes), 0)

    @cached_property
    def _grid(self) -> tuple[Tensor, Tensor, Tensor]:
        largest = max(self.sizes)
        places = self.tasks * largest + torch.cat([torch.arange(size) for size in self.sizes])
        rows = torch.zeros(len(self.sizes) * largest, dtype=torch.long)
        rows[places] = torch.arange(len(places))
        is_row = torch.zeros(len(rows), 1, dtype=torch.bool)
        is_row[places] = True
        return rows, is_row, places

    def to_grid(self, rows: Tensor) -> Tensor:
        """(rows, width) to (tasks, most rows of a task, width), with zeros where there is none."""
        index, is_row, _ = (each.to(rows.device) for each in self._grid)
        return (rows.index_select(0, index) * is_row).view(len(self.sizes), -1, rows.shape[1])

    def to_rows(self, grid: Tensor) -> Tensor:
        """The reverse."""
        return grid.flatten(0, 1).index_select(0, self._grid[2].to(grid.device))
