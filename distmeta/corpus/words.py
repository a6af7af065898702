"""When two texts are the same, and which words carry no meaning."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import regex

from distmeta.corpus.boundaries import find_segments
from distmeta.errors import UserError

_WHITE_SPACE = re.compile(r"\s+")
_NOT_COMPARED_IN_ASCII = re.compile(r"[^a-z0-9]+")
_NOT_COMPARED = regex.compile(r"[^\p{L}\p{M}\p{N}]+")
CHINESE_STOP_WORDS = frozenset("的了着是在和与及或而且但也都就还又被把将对从向于以为之其这那吗呢吧啊呀嘛哦")


def hash64(text: str) -> int:
    """Return an unsigned 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def text_key(*texts: str) -> int:
    """Return an unsigned 64-bit hash of a text or a pair: equal where only case and white space differ."""
    return hash64("\0".join(" ".join(text.casefold().split()) for text in texts))


def near_key(*texts: str) -> int:
    """Return an unsigned 64-bit hash of a text or a pair: equal where only case, spaces and punctuation differ."""
    near = [
        (_NOT_COMPARED_IN_ASCII if text.isascii() else _NOT_COMPARED).sub("", text.casefold()) or text for text in texts
    ]
    return hash64("\0".join(near))


OVERLAP_KEYS = ("exact_key", "near_key")


def overlap_keys(texts: Iterable[Sequence[str]]) -> dict[str, np.ndarray]:
    """Return the columns OVERLAP_KEYS: hashes (int64) of texts or pairs, to the character and by `near_key`."""
    keys = [(hash64("\0".join(each)), near_key(*each)) for each in texts]
    both = np.array(keys, np.uint64).reshape(-1, 2).astype(np.int64)
    return {"exact_key": both[:, 0], "near_key": both[:, 1]}


def load_stop_words(file: str | None) -> frozenset[str]:
    """Return the stop words of a file with one a line, or the built-in English and Chinese ones, in lower case.

    A word with an apostrophe is in it with either of the two. Raises UserError where the file cannot be read.
    """
    if file is None:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        return frozenset(ENGLISH_STOP_WORDS) | CHINESE_STOP_WORDS
    try:
        lines = Path(file).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"corpus.stop_words_file: {file}: cannot be read as UTF-8 text ({error})") from error
    words = {" ".join(line.split()).lower() for line in lines if line.strip()}
    return frozenset(words | {word.replace("'", "’") for word in words} | {word.replace("’", "'") for word in words})


_TOKEN_OF_NO_WORD = regex.compile(r"\p{N}+|\S\p{M}*")


def _tokens(text: str) -> Iterator[tuple[int, int]]:
    """Yield where words, numbers and signs stand."""
    place = 0
    for start, end, _ in find_segments(text):
        yield from (match.span() for match in _TOKEN_OF_NO_WORD.finditer(text, place, start))
        yield start, end
        place = end
    yield from (match.span() for match in _TOKEN_OF_NO_WORD.finditer(text, place))


class StopWords:
    """Takes stop words out of texts: whole words or several in a row, in any case."""

    def __init__(self, stop_words: Iterable[str]) -> None:
        self._stop_words = frozenset(stop_words)
        self._lengths = sorted({sum(1 for _ in _tokens(word)) for word in self._stop_words} - {0}, reverse=True)
        self.removed = 0
        """How many have been taken out so far."""

    def remove(self, text: str) -> str:
        """Return the text without its stop words, white space folded; the text itself where no word is left."""
        [kept] = self.remove_between([text])
        return kept if next(find_segments(kept), None) else text

    def remove_between(self, pieces: Sequence[str]) -> list[str]:
        """Return the pieces of a text that masks set apart without their stop words, white space folded."""
        kept = [self._without(piece) for piece in pieces]
        kept[0] = kept[0].lstrip()
        kept[-1] = kept[-1].rstrip()
        return kept

    def _without(self, piece: str) -> str:
        tokens = list(_tokens(piece))
        kept, place, number = list[str](), 0, 0
        while number < len(tokens):
            start = tokens[number][0]
            for length in self._lengths:
                end = tokens[number + length - 1][1] if number + length <= len(tokens) else 0
                if end and " ".join(piece[start:end].split()).lower() in self._stop_words:
                    kept += (piece[place:start], " ")
                    place, number = end, number + length
                    self.removed += 1
                    break
            else:
                number += 1
        return _WHITE_SPACE.sub(" ", "".join((*kept, piece[place:])))
