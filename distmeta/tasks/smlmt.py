"""Subset masked language modelling tasks (Bansal et al. 2020, arXiv:2009.08445).

A class is a word, an example a sentence in which every occurrence of that word is hidden.
"""

import re
from collections.abc import Iterator, Sequence

from distmeta.corpus.encoder import Encoder
from distmeta.corpus.words import CJK, CJK_CHARACTER, WORD

_LETTER = re.compile(rf"[^\W\d_{CJK}]")


def split_at_word(sentence: str, word: str) -> list[str]:
    """Return the texts around the occurrences, as whole words and in any case, of `word`, which is case folded."""
    lower = sentence.lower()
    if len(lower) == len(sentence) and lower == sentence.casefold():
        spans = [(start, start + len(word)) for start in _starts_of_word(lower, word)]
    else:  # folding the sentence would move or join letters, as the German sharp s
        spans = [match.span() for match in WORD.finditer(sentence) if match[0].casefold() == word]
    cuts = [0, *(place for span in spans for place in span), len(sentence)]
    return [sentence[start:end] for start, end in zip(cuts[::2], cuts[1::2], strict=True)]


def _starts_of_word(text: str, word: str) -> Iterator[int]:
    """Yield where `word` stands in `text` with no other letter beside it."""
    is_one_character = CJK_CHARACTER.fullmatch(word) is not None
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        has_letter_beside = (start > 0 and _LETTER.match(text, start - 1)) or _LETTER.match(text, end)
        if is_one_character or not has_letter_beside:
            yield start
        start = text.find(word, end)


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
