"""Where the tokens of a packed row stand, in the row and in the padded grids of attention.

The texts of a row, (1, tokens, width), go to grids of texts of like length, (texts, longest), and back. Nothing here
waits for a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distmeta.models.parts import Parts, is_batched

TEXTS_A_GRID = 6
"""Texts for each grid, at least."""
MOST_GRIDS = 3


@dataclass(frozen=True)
class Grid:
    """Some texts of a packed row, of like length, with padding: (texts, longest)."""

    is_token: Tensor
    """(texts * longest,), bool: whether there is a token."""
    texts: int
    longest: int
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
    """Where the rows of a packed row stand in its grids, one behind the other, and the reverse."""

    from_grids: Tensor
    """(rows,): the place of each row; 0 where it has none."""
    to_grids: Tensor
    """(places,): the row of each place; 0 where there is none."""
    is_token: Tensor
    """(places,), bool: whether there is one."""
    is_text: Tensor | None
    """(rows,), bool: whether a row has a place; None where all have."""

    def split(self, rows: Tensor) -> Tensor:
        """Rows (rows, ...) at the places of all grids, (places, ...); where there is no token, whatever is masked."""
        found: Tensor = _ToGrids.apply(rows, self)
        return found

    def join(self, places: Tensor) -> Tensor:
        """The reverse."""
        found: Tensor = _ToRow.apply(places, self)
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
    grids: list[Grid]
    """The texts by length, for attention."""
    places: Places
    """Where the tokens stand in the grids."""
    places_of_heads: dict[int, Places] = field(default_factory=dict)
    """Those of `by_head` that were asked for."""

    def by_head(self, heads: int) -> Places:
        """Where the rows (tokens * heads) stand if the places of a head of a text stand together."""
        if heads not in self.places_of_heads:
            head = torch.arange(heads, device=self.to_row.device)
            parts = self.places.to_grids.split([grid.texts * grid.longest for grid in self.grids])
            to_grids, is_token = [], []
            place = self.places.from_grids
            from_grids = torch.zeros_like(place)[:, None]
            before = 0
            for grid, part in zip(self.grids, parts, strict=True):
                to_grids.append((part.view(grid.texts, 1, grid.longest) * heads + head[:, None]).flatten())
                is_token.append(grid.is_token.view(grid.texts, 1, -1).expand(-1, heads, -1).flatten())
                inside = place - before
                text, column = inside[:, None] // grid.longest, inside[:, None] % grid.longest
                own = before * heads + (text * heads + head) * grid.longest + column
                is_here = (inside >= 0) & (inside < len(part))
                from_grids = torch.where(is_here[:, None], own, from_grids)
                before += len(part)
            is_text = self.places.is_text
            if is_text is not None:
                is_text = is_text[:, None].expand(-1, heads).flatten()
            found = Places(from_grids.flatten(), torch.cat(to_grids), torch.cat(is_token), is_text)
            self.places_of_heads[heads] = found
        return self.places_of_heads[heads]

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
            device: of the tensors. They are made on the CPU, so that a GPU need not be waited for.
        """
        size, sizes = np.array(lengths), np.array(parts.sizes)
        before = size.cumsum() - size
        of_task = np.arange(len(sizes)).repeat(texts_per_task)
        first_texts = np.cumsum(texts_per_task) - texts_per_task
        starts = before + (sizes.cumsum() - sizes - before[first_texts])[of_task]
        text = np.arange(len(size)).repeat(size)
        position = np.arange(len(text)) - before[text]
        tokens = starts[text] + position
        positions, to_row, from_grids = np.zeros((3, sizes.sum()), np.int64)
        positions[tokens], to_row[tokens] = position, text * longest + position
        is_text = np.zeros(len(to_row), bool)
        is_text[tokens] = True
        average = np.zeros((len(size), len(to_row)))
        average[text, tokens] = 1 / size[text]

        # Where each call is a launch there is one grid, of a width that does not depend on what is in it.
        is_one = is_batched(device)
        grids: list[Grid] = []
        to_grids: list[np.ndarray] = []
        places = 0
        by_length = size.argsort(kind="stable")
        for part in np.array_split(by_length, 1 if is_one else max(1, min(MOST_GRIDS, len(size) // TEXTS_A_GRID))):
            width = longest if is_one else int(size[part[-1]])
            at = np.arange(width)
            is_token = (at < size[part, None]).reshape(-1)
            to_grids.append((starts[part, None] + at).reshape(-1) * is_token)
            from_grids[to_grids[-1][is_token]] = places + is_token.nonzero()[0]
            grids.append(Grid(torch.from_numpy(is_token).to(device), len(part), width))
            places += len(is_token)

        def moved(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        return cls(
            moved(positions[None]),
            moved(starts),
            moved(average),
            moved(to_row),
            grids,
            Places(
                moved(from_grids),
                moved(np.concatenate(to_grids)),
                torch.cat([grid.is_token for grid in grids]),
                moved(is_text) if is_one else None,
            ),
        )
