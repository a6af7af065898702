"""Texts packed into one row without padding, kept apart inside attention alone.

Linear layers, norms and activations see real tokens only, (1, tokens, width). Attention, whose share is small, takes
them in grids of whole texts: see `distmeta.compute.layout`. It goes in through the interface
in which `transformers` lets one register attention, so it serves every architecture that uses this;
`what_hinders_packing` finds out.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from distmeta.compute import attention_twice
from distmeta.compute.layout import Layout

if TYPE_CHECKING:
    from distmeta.compute.batch import TokenBatch

NAME = "distmeta_packed"

_current = threading.local()


HARMLESS = {"sliding_window", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "deterministic"}
"""What models tell their attention that changes nothing here; a window of attention is looked at beforehand."""


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
    layout: Layout = _current.layout
    if is_causal is None:
        is_causal = getattr(module, "is_causal", False)
    if key.shape[1] != query.shape[1]:  # several heads share a key
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if _current.eager:  # fused attention cannot be differentiated twice
        grids = layout.padded_grids  # calls cost where each is differentiated twice
        places = grids.by_head(query.shape[1])
        rows = (each.squeeze(0).transpose(0, 1).reshape(-1, each.shape[-1]) for each in (query, key, value))
        q, k, v = (places.split(each) for each in rows)
        out = attention_twice.attention(q, k, v, grids.each, scaling, dropout, is_causal)
        return places.join(out).view(1, -1, query.shape[1], value.shape[-1]), None
    grids = layout.grids

    def split(each: Tensor) -> tuple[Tensor, ...]:
        return grids.places.split(each.squeeze(0).transpose(0, 1)).split(grids.sizes)

    parts = []
    for grid, *given in zip(grids.each, split(query), split(key), split(value), strict=True):
        q, k, v = (each.view(grid.texts, grid.longest, *each.shape[1:]).transpose(1, 2) for each in given)
        mask = None if is_causal or grid.is_full else grid.mask(query.dtype, is_causal=False)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=scaling
        )
        parts.append(out.transpose(1, 2).reshape(-1, *out.shape[1::2]))
    return grids.places.join(parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0), None


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
    batch, training = short_texts(base), base.training
    base.eval()
    try:
        padded = run(base, batch, packed=False).last_hidden_state.flatten(0, 1)[batch.layout.to_row]
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
    batch, training = short_texts(base), base.training
    table: Any = base.get_input_embeddings()
    padding = table.weight[_padding(base)]
    usual = padding.clone()
    padding.copy_(torch.linspace(-1, 1, len(padding)))  # a new one is 0, which a sum over neighbours would not show
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
        padding.copy_(usual)
        base.train(training)


def short_texts(base: PreTrainedModel, lengths: Sequence[int] = (7, 2, 5)) -> "TokenBatch":
    """Texts to try a network out on: of high ids, which no model knows for special, and with a mask if it has one."""
    from distmeta.compute.batch import collate_tokens  # which imports this file

    rows = len(base.get_input_embeddings().weight)  # type: ignore[arg-type]
    texts = [[rows - 1 - (7 * n + 3 * place) % min(rows, 90) for place in range(n)] for n in lengths]
    texts[0][-1] = getattr(base.config, "mask_token_id", None) or texts[0][-1]
    return collate_tokens(texts, _padding(base), torch.device("cpu"), [1] * len(texts))


def _padding(base: PreTrainedModel) -> int:
    return getattr(base.config, "pad_token_id", None) or 0


def run(model: PreTrainedModel, batch: "TokenBatch", *, packed: bool) -> Any:
    """The model's output for a batch, as padded rows (texts, longest, ...) or as one packed row (1, tokens, ...)."""
    arguments: dict[str, Any] = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    if not packed:
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **arguments)
    layout = batch.layout
    with packed_attention(model, layout):
        ids = batch.input_ids.reshape(-1).index_select(0, layout.to_row)[None]
        return model(input_ids=ids, position_ids=layout.positions + position_offset(model), **arguments)
