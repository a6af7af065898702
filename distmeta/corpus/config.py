"""Settings of the corpus and its tokenizer."""

import codecs
from contextlib import suppress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from distmeta.section import Section

BUILTIN = "builtin:python-docs"
DOCSTRINGS = "builtin:python-docstrings"
BUILTINS = (BUILTIN, DOCSTRINGS)
"""The sources that are in every CPython: text, and a labelled set with the columns text and label."""
HUGGING_FACE = "huggingface:"
"""What an address of a data set on the Hugging Face hub, or in a saved folder, begins with."""

SHORTEST = 8
"""The least that the longest sequence may have (tokens)."""


def is_remote(path: str) -> bool:
    """Whether the address of a source is none of a local file."""
    return "://" in path or path.startswith("builtin:")


def check_encoding(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: Python knows no text encoding of that name.
    """
    try:
        codecs.getincrementaldecoder(name)
        with suppress(UnicodeDecodeError):
            b"text".decode(name)
    except (LookupError, ValueError):
        raise ValueError(f"no text encoding of Python's is called {name!r}; cp1252, gb18030, utf-16 are some") from None
    return name


class SourceConfig(Section):
    """One source, where its path alone does not say enough."""

    path: str
    """A file, a folder, a glob, an s3:// or gs:// address, or a Hugging Face dataset (its name or a saved folder)."""
    format: Literal["auto", "text", "jsonl", "csv", "tsv", "parquet", "huggingface"] = "auto"
    """How the file is read; auto goes by its name (.txt .jsonl .ndjson .json .csv .tsv .parquet). Each may be gzip,
    bzip2, xz or zstd, which its first bytes tell."""
    encoding: Annotated[str, AfterValidator(check_encoding)] | None = None
    """Any text encoding of Python's, such as cp1252; unset: UTF-8, or what a mark at the beginning of a file says."""
    columns: list[str] | None = None
    """Column names of a CSV or TSV file that has no header line."""
    config: str | None = None
    """Configuration name of a Hugging Face dataset."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    name: str | None = Field(default=None, min_length=1)
    """The data set that it belongs to: sources of one name are one, with classes that are its own. Unset: its path's
    name where it has labels and a label_column, role or weight of its own; all other sources are one data set."""
    text_column: str | None = None
    """Column that holds the text; unset: `tasks.text_column`."""
    text_pair_column: str | None = None
    """Column of a second text; unset: `tasks.text_pair_column`."""
    label_column: str | None = None
    """Column that holds the class; unset: `tasks.label_column`, and where that is unset too it is text without labels,
    for SMLMT tasks and language modelling."""
    weight: float | None = Field(default=None, ge=0)
    """How often tasks come from its data set, beside the others' weights; unset: 1. No part of the prepared corpus."""
    role: Literal["train", "valid", "test"] | None = None
    """The split that all its data set's classes are in; unset: they are split by `tasks.split_ratio` or
    `tasks.split_files`."""


class CorpusConfig(Section):
    """Where text comes from and how it is cleaned."""

    sources: list[str | SourceConfig] = Field(default=[BUILTIN], min_length=1)
    """Files, folders, globs, s3:// and gs:// addresses, huggingface:NAME, builtin:python-docs (text) and
    builtin:python-docstrings (with labels, in the columns text and label), or any of them as
    {path: ..., format: csv, encoding: cp1252, columns: [label, text], config: ..., split: ...}, with what is needed.
    In a mixture each has its own {path: ..., name: ..., text_column: ..., text_pair_column: ..., label_column: ...,
    weight: 1, role: train, valid or test}; one of these is set as corpus.sources.NAME.weight."""
    record: Literal["line", "paragraph"] = "line"
    """What one record of a plain text file is; paragraphs are set apart by empty lines."""
    normalize: Literal["NFC", "NFKC", "none"] = "NFC"
    """Unicode normalisation form."""
    deduplicate: bool = True
    """Keep only the first of records whose text (and label) is the same, over all of a data set."""
    split_sentences: bool = True
    """Cut records where Unicode has sentence ends, in every script, though not behind English abbreviations. Rows of a
    labelled set are never cut."""
    max_sentence_words: int = Field(default=100, ge=10)
    """A longer sentence, as in text without punctuation, is cut into windows of at most so many words, and counted."""
    remove_stop_words: bool = False
    """Take function words out of the text before it is tokenized."""
    stop_words_file: str | None = None
    """A file with one stop word a line; unset: built-in English and Chinese lists, none for other languages."""
    accept_losses: bool = False
    """Whether to go on without what cannot be read: files whose ending no reader knows or whose stream is broken, and
    rows that are not decodable, not JSON, not text, or not as wide as the header. Unset, such a source is refused. Rows
    that are only empty, too long, repeated or without a text or label are left out in any case. All are counted."""
    max_record_bytes: int = Field(default=1_000_000, ge=100)
    """Longer records are dropped and counted, but that longer lines of plain text are read in parts where records are
    cut into sentences (bytes)."""
    min_sentence_words: int = Field(default=3, ge=1)
    """Shorter sentences make no tasks (words by Unicode's rules; a Chinese character counts as one). Language modelling
    keeps them."""
    executor: Literal["auto", "local", "ray"] = "auto"
    """Where the work is done: in this process, or on a cluster by Ray Data; auto: in this process below 8 MB."""
    directory: str | None = None
    """Where the prepared corpus is kept; unset: the folder `corpus` of the run directory."""


class TokenizerConfig(Section):
    """The tokenizer: loaded, or trained on the corpus."""

    name_or_path: str | None = None
    """Folder or hub name of a fast tokenizer, or package:NAME/FOLDER; unset: the one beside `model.name_or_path`, or
    trained on the corpus."""
    algorithm: Literal["wordpiece", "bpe"] = "wordpiece"
    """What is trained where none is loaded; bpe works on bytes and so knows no unknown character."""
    vocab_size: int = Field(default=8000, ge=300)
    """Size of a trained vocabulary, special tokens included (tokens)."""
    lowercase: bool = True
    """Whether a trained tokenizer folds case, and nothing else (in every language alike: a Turkish I becomes i)."""
    strip_accents: bool = False
    """Whether a trained tokenizer takes the accents off Latin, Greek and Cyrillic letters, so that möchte is mochte."""
    train_bytes: int = Field(default=50_000_000, ge=10_000)
    """A trained tokenizer sees an even sample of the corpus of at most this size (bytes)."""
    max_length: int = Field(default=128, ge=SHORTEST)
    """Longest sequence, special tokens included; the model's own limit holds where it is lower (tokens)."""
