"""Text to token ids, by the prepared tokenizer."""

import json
import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from distmeta.errors import UserError
from distmeta.store.folders import present_folder

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
        settings = json.loads(self.tokenizer.to_str())
        self.unknown_id: int | None = _unknown_id(self.tokenizer, settings["model"])
        """What stands for text that the tokenizer cannot spell; None where it can spell everything."""
        self._cut = _cut_of(settings)
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
    return Encoder(present_folder(folder))


def _unknown_id(tokenizer: Tokenizer, model: dict[str, Any]) -> int | None:
    if model["type"] == "Unigram":
        number: int | None = model.get("unk_id")
        return number
    token = model.get("unk_token")
    return None if token is None else tokenizer.token_to_id(token)


BYTE_LEVEL_WORDS = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}[\p{L}\p{M}\x{200c}\x{200d}]*| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
"""How GPT-2 cuts a text before it encodes bytes, but that a word keeps its combining signs."""
ACCENTS = r"(?<=[\p{Latin}\p{Greek}\p{Cyrillic}])\p{M}+"
"""Signs that are accents, in decomposed text. Those of other scripts are vowels."""
UNPRINTABLE = r"[^\P{C}\s\x{200b}\x{200c}\x{200d}]|\x{fffd}"
"""What BERT takes out of a text, but for the joiners that many scripts spell words with."""
ZERO_WIDTH_SPACE = r"\x{200b}"
_WITHIN_WORDS = ("BertNormalizer", "Lowercase", "NFC", "NFD", "Replace")
"""Normalizers that do the same to a stretch between white space as to the whole text, `Replace` where it is ours."""


def _cut_of(settings: dict[str, Any]) -> Cut | None:
    """Return a function that cuts a text where the tokenizer does in any case, or None for the texts that it can't cut.

    None instead of a function: this kind of tokenizer may look across white space.
    """
    if any(not token["special"] for token in settings["added_tokens"]):
        return None
    pre_tokenizer = settings["pre_tokenizer"] or {}
    steps = _steps(settings["normalizer"], "normalizers")
    replaced = [step["pattern"].get("Regex") for step in steps if step["type"] == "Replace"]
    if not {step["type"] for step in steps} <= {*_WITHIN_WORDS}:
        return None
    if not {*replaced} <= {ACCENTS, UNPRINTABLE, ZERO_WIDTH_SPACE}:
        return None
    if pre_tokenizer.get("type") == "BertPreTokenizer":
        return _characters_or_words if any(step.get("handle_chinese_chars") for step in steps) else _words
    *before, last = _steps(pre_tokenizer, "pretokenizers") or [{}]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if before:
        cuts_words = before == [
            {"type": "Split", "pattern": {"Regex": BYTE_LEVEL_WORDS}, "behavior": "Isolated", "invert": False}
        ]
    else:
        cuts_words = last.get("use_regex", True)
    return _words_with_spaces if cuts_words else None


def _steps(settings: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if not settings:
        return []
    steps: list[dict[str, Any]] = settings.get(name, [settings])
    return steps


def _is_plain(text: str) -> bool:
    """Whether a text has no white space but the plain space, and no control characters, which normalizers treat apart.

    Joiners stand within words.
    """
    return text.isprintable() or text.replace("\u200c", "").replace("\u200d", "").isprintable()


def _words(text: str) -> list[str] | None:
    return text.split() if _is_plain(text) else None


# The characters that BERT's normalizer sets apart by spaces.
BERT_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f"
_CHARACTERS_OR_WORDS = re.compile(rf"[{BERT_CHINESE}]|[^\s{BERT_CHINESE}]+")


def _characters_or_words(text: str) -> list[str] | None:
    if text.isascii():
        return _words(text)
    return _CHARACTERS_OR_WORDS.findall(text) if _is_plain(text) else None


def _words_with_spaces(text: str) -> list[str] | None:
    if not _is_plain(text) or "  " in text or text[-1:] == " ":
        return None
    first, *others = text.split(" ")
    return [first, *(" " + other for other in others)]
