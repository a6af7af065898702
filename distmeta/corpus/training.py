"""The tokenizer of a corpus, trained on an even sample of it: the same tokenizer for the same text."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from distmeta.corpus.config import TokenizerConfig
from distmeta.corpus.encoder import ACCENTS, BERT_CHINESE, BYTE_LEVEL_WORDS, UNPRINTABLE, ZERO_WIDTH_SPACE
from distmeta.corpus.executor import Executor
from distmeta.corpus.parts import Part, make_part, read_parquet, write_parquet
from distmeta.corpus.shards import Shard
from distmeta.corpus.tables import KEY_SPACE
from distmeta.corpus.tokenizer import STEP, save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
SAMPLE = "sample.parquet"
LONGEST_WORD = 1000
"""A longer stretch without white space and punctuation is an unknown token of word pieces (characters)."""
_CHINESE = re.compile(f"[{BERT_CHINESE}]")


def train_tokenizer(
    config: TokenizerConfig, max_length: int, shards: Sequence[Shard], text_bytes: int, work: Path, executor: Executor
) -> Part:
    """Return a part with a tokenizer trained on an even sample of at most `config.train_bytes` of the shards.

    `text_bytes` is how much text the shards hold. The part is as `import_tokenizer` describes.
    """
    key_limit = int(min(1.0, config.train_bytes / max(1, text_bytes)) * KEY_SPACE)
    samples = list(executor.map(_sample, [_SampleUnit(shard, key_limit) for shard in shards], "tokenizer: sampling"))
    settings = config.model_dump(include={"algorithm", "vocab_size", "lowercase", "strip_accents", "train_bytes"})
    identity = [tokenizers.__version__, settings, max_length, [sample.key for sample in samples]]
    return make_part(work / STEP, identity, lambda folder: save_tokenizer(_train(config, samples), max_length, folder))


@dataclass(frozen=True, slots=True)
class _SampleUnit:
    shard: Shard
    key_limit: int


def _sample(unit: _SampleUnit) -> Part:
    identity = [unit.shard.identity(), str(unit.key_limit)]
    return make_part(unit.shard.work / "samples", identity, lambda folder: _write_sample(unit, folder))


def _write_sample(unit: _SampleUnit, folder: Path) -> dict[str, Any]:
    """Keep the sentences of the records whose hash is below the limit: the same share of every shard."""
    records = unit.shard.read()
    sentences = [
        sentence
        for key, sentences in zip(records["text_key"].to_pylist(), records["sentences"].to_pylist(), strict=True)
        if key < unit.key_limit
        for sentence in sentences
    ]
    write_parquet(pa.table({"sentence": pa.array(sentences, pa.string())}), folder / SAMPLE)
    characters = Counter[str]()
    for sentence in sentences:
        characters.update(sentence)
        if not unicodedata.is_normalized("NFC", sentence):
            characters.update(unicodedata.normalize("NFC", sentence))
    return {"characters": characters}


def _sentences(samples: Sequence[Part], limit: int) -> Iterator[list[str]]:
    """Yield the sentences sample by sample, as far as `limit` bytes reach."""
    for sample in samples:
        sentences = read_parquet(sample.folder / SAMPLE)["sentence"].to_pylist()
        limit -= sum(len(sentence.encode()) for sentence in sentences)
        if limit < 0:
            return
        yield sentences


def _train(config: TokenizerConfig, samples: Sequence[Part]) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    with _all_threads():
        train = _train_wordpiece if config.algorithm == "wordpiece" else _train_byte_level_bpe
        tokenizer = train(config, samples)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    # Byte-level words begin with their space, and so does a mask that stands for one.
    mask = AddedToken("[MASK]", lstrip=config.algorithm == "bpe", special=True, normalized=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS | {"mask_token": mask})


def _train_wordpiece(config: TokenizerConfig, samples: Sequence[Part]) -> Tokenizer:
    """Train word pieces. Every piece of one character is named beforehand.

    The trainer would number those in the order of a hash table, other in every process, and break ties between merges
    by these numbers.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            *_without_accents(config),
            normalizers.Replace(Regex(ZERO_WIDTH_SPACE), " "),
            normalizers.Replace(Regex(UNPRINTABLE), ""),
            # What is unset follows `lowercase`, so that folding case would take accents away.
            normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=config.lowercase),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = Counter[str]()
    for sample in samples:
        for character, count in sample.summary["characters"].items():
            for normalized in tokenizer.normalizer.normalize_str(character).split():
                for each in normalized:
                    characters[each] += count
    alphabet = _alphabet(characters, config.vocab_size * 3 // 4)
    continuing = [f"##{each}" for each in alphabet if not _stands_alone(each)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[*SPECIAL_TOKENS.values(), *continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(samples, config.train_bytes), trainer)

    # A script without spaces has long stretches, and a longer one would be one unknown token.
    longest = {"max_input_chars_per_word": LONGEST_WORD}
    trained = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]", **longest))
    trained.normalizer = tokenizer.normalizer
    trained.pre_tokenizer = tokenizer.pre_tokenizer
    trained.decoder = decoders.WordPiece()
    return trained


def _alphabet(characters: Counter[str], room: int) -> list[str]:
    """Return the most frequent characters whose pieces, one at the start of a word and one within, fill the room.

    The characters of a Chinese or Korean corpus may be more than the vocabulary.
    """
    most_frequent = sorted(characters, key=lambda each: (-characters[each], each))
    filled = accumulate(1 if _stands_alone(each) else 2 for each in most_frequent)
    return sorted(each for each, pieces in zip(most_frequent, filled, strict=True) if pieces <= room)


def _stands_alone(character: str) -> bool:
    """Whether BERT's rules make a word of the character, whatever is beside it."""
    is_ascii_punctuation = character.isascii() and not character.isalnum()
    return is_ascii_punctuation or unicodedata.category(character)[0] == "P" or bool(_CHINESE.match(character))


def _train_byte_level_bpe(config: TokenizerConfig, samples: Sequence[Part]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    steps = [*_without_accents(config), *([normalizers.Lowercase()] if config.lowercase else [])]
    tokenizer.normalizer = normalizers.Sequence(steps) if steps else None
    words = pre_tokenizers.Split(Regex(BYTE_LEVEL_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(samples, config.train_bytes), trainer)
    return tokenizer


def _without_accents(config: TokenizerConfig) -> list[normalizers.Normalizer]:
    if not config.strip_accents:
        return []
    return [normalizers.NFD(), normalizers.Replace(Regex(ACCENTS), ""), normalizers.NFC()]


@contextmanager
def _all_threads() -> Iterator[None]:
    """Let the trainer use every CPU: nothing else runs in this process meanwhile."""
    before = os.environ.get("TOKENIZERS_PARALLELISM", "false")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before
