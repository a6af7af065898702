"""Texts packed into one row without padding, kept apart inside attention alone.

Linear layers, norms and activations see real tokens only, (1, tokens, width). Attention, whose share is small, moves
them to padded grids (texts, longest, heads, width of a head) of texts of like length and back. It goes in through the
interface in which `transformers` lets one register attention, so it serves every architecture that uses this;
`what_hinders_packing` finds out.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from distmeta.models.parts import Parts, is_batched

if TYPE_CHECKING:
    from distmeta.models.batch import TokenBatch

NAME = "distmeta_packed"

_current = threading.local()


HARMLESS = {"sliding_window", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "deterministic"}
"""What models tell their attention that changes nothing here; a window of attention is looked at beforehand."""

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
    from_grids: Tensor
    """(tokens,): the place of each token in all grids, one behind the other."""
    to_grids: Tensor
    """(places,): the token of each place of all grids; 0 where there is none."""
    is_token: Tensor
    """(places,), bool: whether there is a token."""
    is_text: Tensor | None
    """(tokens,), bool: whether a token is no filler; None where none can be."""

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
            moved(from_grids),
            moved(np.concatenate(to_grids)),
            torch.cat([grid.is_token for grid in grids]),
            moved(is_text) if is_one else None,
        )


class _ToGrids(torch.autograd.Function):
    """Rows (tokens, ...) to the places of all grids (places, ...); where there is no token, to whatever is masked."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return rows.index_select(0, layout.to_grids)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows = _ToRow.apply(gradient, ctx.layout)
        is_text = ctx.layout.is_text
        return rows if is_text is None else rows * is_text.view(-1, *[1] * (rows.ndim - 1)), None


class _ToRow(torch.autograd.Function):
    """The reverse: by index in both directions, where autograd itself would scatter."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return places.index_select(0, layout.from_grids)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Nothing comes back from where there is no token.
        is_token = ctx.layout.is_token.view(-1, *[1] * (gradient.ndim - 1))
        return _ToGrids.apply(gradient, ctx.layout) * is_token, None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of each token to those of its own text: takes (1, heads, tokens, d), returns (1, tokens, heads, d).

    Raises:
        NotImplementedError: the model asks for more than that, such as a bias or a bound of the scores.
    """
    more = [name for name, value in options.items() if name not in HARMLESS and value is not None]
    if attention_mask is not None or more:
        raise NotImplementedError(f"its attention takes {more[0] if more else 'a mask of its own'}")
    layout = _current.layout
    sizes = [grid.texts * grid.longest for grid in layout.grids]

    def split(each: Tensor) -> tuple[Tensor, ...]:
        return _ToGrids.apply(each.squeeze(0).transpose(0, 1), layout).split(sizes)

    if is_causal is None:
        is_causal = getattr(module, "is_causal", False)
    parts = []
    for grid, *places in zip(layout.grids, split(query), split(key), split(value), strict=True):
        q, k, v = (each.view(grid.texts, grid.longest, *each.shape[1:]).transpose(1, 2) for each in places)
        out = _attend(q, k, v, grid, scaling, dropout, is_causal)
        parts.append(out.transpose(1, 2).reshape(-1, *out.shape[1::2]))
    return _ToRow.apply(parts[0] if len(parts) == 1 else torch.cat(parts), layout).unsqueeze(0), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, grid: Grid, scaling: float | None, dropout: float, is_causal: bool
) -> Tensor:
    """Attention within the texts of a grid: (texts, heads, longest, d) throughout."""
    if key.shape[1] != query.shape[1]:  # several heads share a key
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    if not _current.eager:
        mask = None if is_causal else grid.mask(query.dtype, is_causal=False)
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=scaling
        )
    # Fused attention cannot be differentiated twice.
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = scores + grid.mask(scores.dtype, is_causal=is_causal)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return functional.dropout(weights, dropout) @ value


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


@contextmanager
def packed_attention(model: PreTrainedModel, layout: Layout) -> Iterator[None]:
    """While it is entered, the network takes packed rows of this layout."""
    usual = model.config._attn_implementation
    _current.layout, _current.eager = layout, usual == "eager"
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = usual


def position_offset(model: nn.Module) -> int:
    """The position of a text's first token: 0, but in RoBERTa's kind, which counts behind its padding's index."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


@torch.no_grad()
def what_hinders_packing(base: PreTrainedModel, max_length: int | None) -> str:
    """Why the network does not compute the same on packed texts as on padded ones; empty where it does. Tried out on
    three short ones; `max_length` is the longest text (tokens)."""
    config = base.config
    if max_length is None:
        return "the longest text is not known"
    window = min(getattr(config, key, None) or 2**31 for key in ("sliding_window", "local_attention"))
    if max_length * 2 > window:
        return f"its window of attention, {window} tokens, may not hold a text of {max_length}"
    batch, training = _short_texts(base), base.training
    base.eval()
    try:
        padded = run(base, batch, packed=False).last_hidden_state[batch.attention_mask.bool()]
        packed = run(base, batch, packed=True).last_hidden_state[0]
        is_same = padded.shape == packed.shape and bool(torch.allclose(padded, packed, atol=1e-4, rtol=1e-3))
        return "" if is_same else "it computes otherwise on packed texts than on padded ones"
    except NotImplementedError as error:
        return str(error)
    except Exception:  # whatever a model's own code makes of it
        return "it does not take packed texts"
    finally:
        base.train(training)


@torch.no_grad()
def ignores_padding(base: PreTrainedModel) -> bool:
    """Whether the network computes the same of a text however far it is padded: tried out on three short ones."""
    batch, training = _short_texts(base), base.training
    base.eval()
    try:
        together = run(base, batch, packed=False).last_hidden_state
        for number, states in enumerate(together):
            alone = run(base, batch.take(torch.tensor([number])), packed=False).last_hidden_state[0]
            if not torch.allclose(states[: len(alone)], alone, atol=1e-4, rtol=1e-3):
                return False
        return True
    except Exception:  # whatever a model's own code makes of it
        return False
    finally:
        base.train(training)


def _short_texts(base: PreTrainedModel) -> "TokenBatch":
    from distmeta.models.batch import collate_tokens  # which imports this file

    highest = min(base.config.vocab_size, 90)
    texts = [[(7 * length + 3 * place) % highest for place in range(length)] for length in (7, 2, 5)]
    return collate_tokens(texts, getattr(base.config, "pad_token_id", None) or 0, torch.device("cpu"))


def run(model: PreTrainedModel, batch: "TokenBatch", *, packed: bool) -> Any:
    """The model's output for a batch, as padded rows (texts, longest, ...) or as one packed row (1, tokens, ...)."""
    arguments: dict[str, Any] = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    if not packed:
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **arguments)
    layout = batch.layout
    with packed_attention(model, layout):
        ids = batch.input_ids.reshape(-1).index_select(0, layout.to_row)[None]
        return model(input_ids=ids, position_ids=layout.positions + position_offset(model), **arguments)
