"""What a word is, when two texts are the same, and which words carry no meaning."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from distmeta.errors import UserError

CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
"""Chinese characters, as ranges of a regular expression's class."""
CJK_CHARACTER = re.compile(f"[{CJK}]")
WORD = re.compile(rf"[{CJK}]|[^\W\d_{CJK}]+")
"""A run of letters, or one Chinese character."""
_WHITE_SPACE = re.compile(r"\s+")

CHINESE_STOP_WORDS = frozenset("的了着是在和与及或而且但也都就还又被把将对从向于以为之其这那吗呢吧啊呀嘛哦")


def hash64(text: str) -> int:
    """Return an unsigned 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def text_key(*texts: str) -> int:
    """Return an unsigned 64-bit hash of a text or a pair: equal where only case and white space differ."""
    return hash64("\0".join(" ".join(text.casefold().split()) for text in texts))


def load_stop_words(file: str | None) -> frozenset[str]:
    """Return the stop words of a file with one a line, or the built-in English and Chinese ones, case folded.

    Raises UserError where the file cannot be read.
    """
    if file is None:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        return frozenset(ENGLISH_STOP_WORDS) | CHINESE_STOP_WORDS
    try:
        lines = Path(file).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"corpus.stop_words_file: {file}: cannot be read as UTF-8 text ({error})") from error
    return frozenset(line.strip().casefold() for line in lines if line.strip())


class StopWords:
    """Takes stop words out of texts."""

    def __init__(self, stop_words: Iterable[str]) -> None:
        alternatives = sorted(stop_words, key=lambda word: (-len(word), word))
        chinese = [word for word in alternatives if CJK_CHARACTER.match(word)]
        others = [word for word in alternatives if word not in set(chinese)]
        patterns = []
        if others:
            patterns.append(rf"(?<![^\W\d_{CJK}])(?:{'|'.join(map(re.escape, others))})(?![^\W\d_{CJK}])")
        if chinese:
            patterns.append("|".join(map(re.escape, chinese)))
        self._pattern = re.compile("|".join(patterns) or r"(?!)", re.IGNORECASE)

    def remove(self, text: str) -> str:
        """Return the text without its stop words, white space folded; the text itself where no word is left."""
        [kept] = self.remove_between([text])
        return kept if WORD.search(kept) else text

    def remove_between(self, pieces: Sequence[str]) -> list[str]:
        """Return the pieces of a text that masks set apart without their stop words, white space folded."""
        kept = [_WHITE_SPACE.sub(" ", self._pattern.sub(" ", piece)) for piece in pieces]
        kept[0] = kept[0].lstrip()
        kept[-1] = kept[-1].rstrip()
        return kept
