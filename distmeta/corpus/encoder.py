"""Text to token ids, by the prepared tokenizer."""

import json
import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer

from distmeta.errors import UserError

_LONGEST_CHUNK = 40
_REMEMBERED_CHUNKS = 300_000
_BATCH = 2000

Cut = Callable[[str], list[str] | None]


class Encoder:
    """Encodes batches of texts in one thread.

    Special tokens that are spelled out in a text are text. Where the tokenizer never looks across white space (as those
    of the BERT and GPT-2 types), each stretch between white space is encoded once and remembered, which gives the same
    ids several times faster. Raises UserError where the mask token has no id.
    """

    def __init__(self, folder: Path) -> None:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        mask = settings["mask_token"]
        self.mask_token: str = mask if isinstance(mask, str) else mask["content"]
        self.mask_id, self.mask_takes_space = self._find_mask(folder)
        # Special tokens stand around the mask as around any text, and it is known to every tokenizer.
        plain = self.tokenizer.encode(self.mask_token, add_special_tokens=False).ids
        whole = self.tokenizer.encode(self.mask_token).ids
        self.tokenizer.encode_special_tokens = True
        start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        self.prefix: list[int] = whole[:start]
        self.suffix: list[int] = whole[start + len(plain) :]
        self._cut = _cut_of(self.tokenizer)
        self._remembered: dict[str, list[int]] = {}

    def _find_mask(self, folder: Path) -> tuple[int, bool]:
        """Return the id of the mask token, and whether it takes the space before it."""
        for number, token in self.tokenizer.get_added_tokens_decoder().items():
            if token.content == self.mask_token:
                return number, token.lstrip
        raise UserError(f"tokenizer: {folder}: the mask token {self.mask_token!r} has no id in tokenizer.json")

    @property
    def special_tokens(self) -> int:
        """How many special tokens a single text gets."""
        return len(self.prefix) + len(self.suffix)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens."""
        if self._cut is None:
            return self._encode_whole(texts)
        return [
            ids
            for start in range(0, len(texts), _BATCH)
            for ids in self._encode_chunks(texts[start : start + _BATCH], self._cut)
        ]

    def _encode_chunks(self, texts: Sequence[str], cut: Cut) -> list[list[int]]:
        remembered = self._remembered
        if len(remembered) > _REMEMBERED_CHUNKS:
            remembered.clear()
        encoded: list[list[int]] = []
        unknown: list[tuple[int, list[str]]] = []
        whole: list[int] = []
        for number, text in enumerate(texts):
            chunks = cut(text)
            try:
                encoded.append([] if chunks is None else list(chain.from_iterable(map(remembered.__getitem__, chunks))))
            except KeyError:
                encoded.append([])
                unknown.append((number, chunks or []))
            if chunks is None:
                whole.append(number)
        for number, ids in zip(whole, self._encode_whole([texts[number] for number in whole]), strict=True):
            encoded[number] = ids

        fresh = list({chunk: None for _, chunks in unknown for chunk in chunks if chunk not in remembered})
        remembered.update(zip(fresh, self._encode_whole(fresh), strict=True))
        for number, chunks in unknown:
            encoded[number] = list(chain.from_iterable(map(remembered.__getitem__, chunks)))
        for chunk in fresh:
            if len(chunk) > _LONGEST_CHUNK:  # addresses and the like, which do not come again
                del remembered[chunk]
        return encoded

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], max_length: int) -> tuple[list[list[int]], int]:
        """Return the token ids of pairs of texts, with special tokens, and how many pairs had to be cut."""
        self.tokenizer.enable_truncation(max_length)
        encodings = self.tokenizer.encode_batch(pairs)
        self.tokenizer.no_truncation()
        return [encoding.ids for encoding in encodings], sum(bool(encoding.overflowing) for encoding in encodings)

    def _encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


@lru_cache(maxsize=2)
def load_encoder(folder: Path) -> Encoder:
    """Return the encoder of a prepared tokenizer; one process loads it once."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return Encoder(folder)


def _cut_of(tokenizer: Tokenizer) -> Cut | None:
    """Return a function that cuts a text where the tokenizer does in any case, or None for the texts that it can't cut.

    None instead of a function: this kind of tokenizer may look across white space.
    """
    settings = json.loads(tokenizer.to_str())
    if any(not token["special"] for token in settings["added_tokens"]):
        return None
    pre_tokenizer = settings["pre_tokenizer"] or {}
    normalizer = settings["normalizer"] or {}
    if pre_tokenizer.get("type") == "BertPreTokenizer" and normalizer.get("type") in (
        None,
        "BertNormalizer",
        "Lowercase",
    ):
        return _characters_or_words if normalizer.get("handle_chinese_chars") else _words
    is_byte_level = pre_tokenizer.get("type") == "ByteLevel" and pre_tokenizer.get("use_regex", True)
    if is_byte_level and not pre_tokenizer["add_prefix_space"] and normalizer.get("type") in (None, "Lowercase"):
        return _words_with_spaces
    return None


# Printable text has no white space but the plain space, and no control characters, which normalizers treat apart.


def _words(text: str) -> list[str] | None:
    return text.split() if text.isprintable() else None


# The characters that BERT's normalizer sets apart by spaces.
BERT_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f"
_CHARACTERS_OR_WORDS = re.compile(rf"[{BERT_CHINESE}]|[^\s{BERT_CHINESE}]+")


def _characters_or_words(text: str) -> list[str] | None:
    if text.isascii():
        return _words(text)
    return _CHARACTERS_OR_WORDS.findall(text) if text.isprintable() else None


def _words_with_spaces(text: str) -> list[str] | None:
    if not text.isprintable() or "  " in text or text[-1:] == " ":
        return None
    first, *others = text.split(" ")
    return [first, *(" " + other for other in others)]
