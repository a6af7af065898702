"""Subset masked language modelling tasks (Bansal et al. 2020, arXiv:2009.08445).

A class is a word, an example a sentence in which every occurrence of that word is hidden.
"""

from collections.abc import Sequence

from distmeta.corpus.boundaries import find_word
from distmeta.corpus.encoder import Encoder


def split_at_word(sentence: str, word: str) -> list[str]:
    """Return the texts around the occurrences of the word with this name (see `find_words`)."""
    cuts = [0, *(place for span in find_word(sentence, word) for place in span), len(sentence)]
    return [sentence[start:end] for start, end in zip(cuts[::2], cuts[1::2], strict=True)]


def encode_masked(pieces: Sequence[Sequence[str]], encoder: Encoder, max_length: int) -> list[tuple[list[int], int]]:
    """Return (token ids with special tokens, position of the first mask) of sentences given by `split_at_word`.

    There is one mask between two pieces. A sequence longer than `max_length` is cut around its first mask.
    """
    texts = [text for sentence in pieces for text in _as_encoded(sentence, encoder)]
    encoded = iter(encoder.encode(texts))
    room = max_length - encoder.special_tokens
    result = []
    for sentence in pieces:
        assert len(sentence) > 1, "a sentence without its class word"
        ids = next(encoded)
        mask = len(ids)
        for _ in sentence[1:]:
            ids = [*ids, encoder.mask_id, *next(encoded)]
        start = min(max(mask - room // 2, 0), max(len(ids) - room, 0))
        result.append(
            ([*encoder.prefix, *ids[start : start + room], *encoder.suffix], len(encoder.prefix) + mask - start),
        )
    return result


def _as_encoded(pieces: Sequence[str], encoder: Encoder) -> list[str]:
    """Return the pieces as the tokenizer sees them between masks."""
    if not encoder.mask_takes_space:
        return list(pieces)
    return [*(piece.rstrip() for piece in pieces[:-1]), pieces[-1]]
