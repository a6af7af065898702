"""Where the tokens of a packed row stand, in the row and in the grids of attention.

The texts of a task stand in the row by length. For attention they go to grids, (texts, longest): on a CPU one for each
length, without padding, which is a part of the row as it is where the whole row stands by length; otherwise a few with
texts of like length and padding. Indices are made on the CPU, and operations on a GPU are a matter of sizes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distmeta.compute.parts import Parts, is_batched

TEXTS_A_GRID = 6
"""Texts for each grid with padding, at least."""
MOST_GRIDS = 3


@dataclass(frozen=True)
class Grid:
    """Some texts of a packed row, of like length: (texts, longest)."""

    is_token: Tensor
    """(texts * longest,), bool: whether there is a token, and no padding."""
    texts: int
    longest: int
    is_full: bool
    """Whether there is known to be no padding."""
    masks: dict[Any, Tensor] = field(default_factory=dict)
    """Those of `mask` that were asked for."""

    def mask(self, dtype: torch.dtype, *, is_causal: bool) -> Tensor:
        """What is added to the scores of attention: 0, and -inf for what is not seen.

        (texts, 1, 1, longest), or (longest, longest) where it is causal: the padding stands behind every token.
        """
        key = (dtype, is_causal)
        if key not in self.masks:
            seen = self.is_token.view(self.texts, 1, 1, self.longest)
            if is_causal:
                seen = torch.ones(self.longest, self.longest, dtype=torch.bool, device=seen.device).tril()
            zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self.masks[key] = zeros.masked_fill_(~seen, float("-inf"))
        return self.masks[key]


@dataclass(frozen=True)
class Places:
    """Where rows stand in grids, one behind the other, and the reverse."""

    from_grids: Tensor
    """(rows,): the place of each row; 0 where it has none."""
    to_grids: Tensor
    """(places,): the row of each place; 0 where there is none."""
    is_token: Tensor
    """(places,), bool: whether there is one."""
    is_text: Tensor | None
    """(rows,), bool: whether a row has a place; None where all have."""
    is_row: bool = False
    """Whether the places are the rows as they are."""

    def split(self, rows: Tensor) -> Tensor:
        """Rows (rows, ...) at the places of all grids, (places, ...); where there is no token, whatever is masked."""
        found: Tensor = rows if self.is_row else _ToGrids.apply(rows, self)
        return found

    def join(self, places: Tensor) -> Tensor:
        """The reverse."""
        found: Tensor = places if self.is_row else _ToRow.apply(places, self)
        return found


class _ToGrids(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return rows.index_select(0, places.to_grids)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _only(_ToRow.apply(gradient, ctx.places), ctx.places.is_text), None


class _ToRow(torch.autograd.Function):
    """By index in both directions, where autograd itself would scatter."""

    @staticmethod
    def forward(ctx: Any, grids: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return grids.index_select(0, places.from_grids)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Nothing comes back from where there is no token.
        return _only(_ToGrids.apply(gradient, ctx.places), ctx.places.is_token), None


def _only(values: Tensor, where: Tensor | None) -> Tensor:
    return values if where is None else values * where.view(-1, *[1] * (values.ndim - 1))


@dataclass(frozen=True)
class Grids:
    """All texts of a packed row, by length."""

    each: list[Grid]
    places: Places
    """Where the tokens stand in the grids."""
    places_of_heads: dict[int, Places] = field(default_factory=dict)
    """Those of `by_head` that were asked for."""

    @property
    def sizes(self) -> list[int]:
        """Places of each grid."""
        return [grid.texts * grid.longest for grid in self.each]

    def by_head(self, heads: int) -> Places:
        """Where the rows (tokens * heads) stand if the places of a head of a text stand together."""
        if heads not in self.places_of_heads:
            place, is_text = self.places.from_grids, self.places.is_text
            head = torch.arange(heads, device=place.device)
            from_grids = torch.zeros_like(place)[:, None]
            to_grids, is_token = [], []
            before = 0
            for grid, part in zip(self.each, self.places.to_grids.split(self.sizes), strict=True):
                to_grids.append((part.view(grid.texts, 1, grid.longest) * heads + head[:, None]).flatten())
                is_token.append(grid.is_token.view(grid.texts, 1, -1).expand(-1, heads, -1).flatten())
                inside = (place - before)[:, None]
                text, column = inside // grid.longest, inside % grid.longest
                own = before * heads + (text * heads + head) * grid.longest + column
                from_grids = torch.where((inside >= 0) & (inside < len(part)), own, from_grids)
                before += len(part)
            if is_text is not None:
                is_text = is_text[:, None].expand(-1, heads).flatten()
            found = Places(from_grids.flatten(), torch.cat(to_grids), torch.cat(is_token), is_text)
            self.places_of_heads[heads] = found
        return self.places_of_heads[heads]


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a packed row belong. A row may hold fillers too, which belong to no text and go nowhere."""

    positions: Tensor
    """(1, tokens): the number of each token in its text."""
    starts: Tensor
    """(texts,): the first token of each text."""
    average: Tensor
    """(texts, tokens), float64: what makes means over the texts of a row."""
    to_row: Tensor
    """(tokens,): the place of each token in the padded batch."""
    longest: int
    """Tokens of the longest text, or more."""
    numbers: tuple[np.ndarray, np.ndarray]
    """The lengths of the texts and their first tokens, on the CPU."""

    @cached_property
    def padded_grids(self) -> Grids:
        """A few grids with padding; where each call is a launch one, as wide as the longest."""
        lengths, starts = self.numbers
        order, device = np.lexsort((starts, lengths)), self.starts.device
        if is_batched(device):
            groups = [(order, self.longest)]
        else:
            few = np.array_split(order, max(1, min(MOST_GRIDS, len(lengths) // TEXTS_A_GRID)))
            groups = [(part, int(lengths[part[-1]])) for part in few]
        return _grids(lengths, starts, groups, len(self.to_row), device)

    @cached_property
    def grids(self) -> Grids:
        """A grid for each length; where each call is a launch, that with padding."""
        lengths, starts = self.numbers
        order, device = np.lexsort((starts, lengths)), self.starts.device
        if is_batched(device):
            return self.padded_grids
        parts = np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)
        return _grids(lengths, starts, [(part, int(lengths[part[0]])) for part in parts], len(self.to_row), device)

    @classmethod
    def of(
        cls, lengths: Sequence[int], longest: int, texts_per_task: Sequence[int], parts: Parts, device: torch.device
    ) -> "Layout":
        """That of texts padded on the right to `longest`.

        Args:
            lengths: tokens of each text.
            longest: see above.
            texts_per_task: how many of the texts belong to each task, in order.
            parts: how many tokens of the row belong to each task, fillers at their end among them.
            device: of the tensors.
        """
        size, sizes = np.array(lengths), np.array(parts.sizes)
        task = np.arange(len(sizes)).repeat(texts_per_task)
        order = np.lexsort((size, task))
        before = np.empty_like(size)
        before[order] = size[order].cumsum() - size[order]
        tokens_of_task = np.bincount(task, size, len(sizes)).astype(np.int64)
        starts = before + (sizes.cumsum() - sizes - tokens_of_task.cumsum() + tokens_of_task)[task]
        text = np.arange(len(size)).repeat(size)
        position = np.arange(len(text)) - (size.cumsum() - size)[text]
        tokens = starts[text] + position
        positions, to_row = np.zeros((2, sizes.sum()), np.int64)
        positions[tokens], to_row[tokens] = position, text * longest + position
        average = np.zeros((len(size), len(to_row)))
        average[text, tokens] = 1 / size[text]
        return cls(
            torch.from_numpy(positions[None]).to(device),
            torch.from_numpy(starts).to(device),
            torch.from_numpy(average).to(device),
            torch.from_numpy(to_row).to(device),
            longest,
            (size, starts),
        )


def _grids(
    lengths: np.ndarray,
    starts: np.ndarray,
    groups: Sequence[tuple[np.ndarray, int]],
    tokens: int,
    device: torch.device,
) -> Grids:
    """The grids of groups of texts: the number of each text, and how wide the grid is."""
    each: list[Grid] = []
    to_grids: list[np.ndarray] = []
    from_grids, is_text = np.zeros(tokens, np.int64), np.zeros(tokens, bool)
    places = 0
    for part, width in groups:
        at = np.arange(width)
        is_token = (at < lengths[part, None]).reshape(-1)
        to_grids.append((starts[part, None] + at).reshape(-1) * is_token)
        from_grids[to_grids[-1][is_token]] = places + is_token.nonzero()[0]
        is_text[to_grids[-1][is_token]] = True
        # Where a recording may be made, nothing may depend on the lengths of one batch.
        is_full = not is_batched(device) and bool(is_token.all())
        each.append(Grid(torch.from_numpy(is_token).to(device), len(part), width, is_full))
        places += len(is_token)
    there = np.concatenate(to_grids)
    found = Places(
        torch.from_numpy(from_grids).to(device),
        torch.from_numpy(there).to(device),
        torch.cat([grid.is_token for grid in each]),
        torch.from_numpy(is_text).to(device) if is_batched(device) else None,
        not is_batched(device) and np.array_equal(there, np.arange(tokens)),
    )
    return Grids(each, found)
