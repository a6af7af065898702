"""The labelled examples in a file, as `distmeta adapt` reads them: by the readers of the corpus."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from distmeta.adapt.base import Text
from distmeta.adapt.rows import with_options
from distmeta.corpus.alike import find_alike, find_like_missing
from distmeta.corpus.config import SourceConfig
from distmeta.corpus.readers import read_piece
from distmeta.corpus.records import RecordSettings, Tally, clean_records, shown
from distmeta.corpus.sources import resolve_sources
from distmeta.errors import UserError

MOST_BYTES = 10_000_000
"""Of a record."""


@dataclass(frozen=True)
class Examples:
    """Texts with their labels."""

    texts: list[Text]
    labels: list[str]


def read_examples(
    path: str,
    text_column: str,
    label_column: str,
    pair_column: str | None,
    say: Callable[[str], None],
    encoding: str | None = None,
) -> Examples:
    """The examples in a file (CSV, TSV, JSON lines, Parquet, or a data set of a hub). Rows that are left out are told.

    Raises:
        UserError: there is no such file or column, something in it cannot be read, or it has fewer than two classes.
    """
    settings = RecordSettings("line", "none", False, MOST_BYTES, text_column, pair_column, label_column)
    texts: list[Text] = []
    labels: list[str] = []
    try:
        pieces = resolve_sources([SourceConfig(path=path, encoding=encoding)]).files
    except UserError as error:
        raise UserError(f"--examples {str(error).removeprefix('corpus.sources: ')}") from None
    for piece in pieces:
        tally = Tally()
        for record in clean_records(read_piece(piece, settings, tally), settings, tally):
            assert record.text is not None  # or it would not be clean
            assert record.label is not None
            texts.append((record.text,) if pair_column is None else (record.text, record.pair or ""))
            labels.append(record.label)
        if tally.problems:
            raise UserError(f"--examples {piece.name}: {with_options(tally.problems[0])}")
        for reason, count in tally.dropped.items():
            why = reason.replace("_", " ")
            say(f"{piece.name}: {count} rows left out: {why}, the first in {tally.places[reason][0]}")
    counts = Counter(labels)
    if len(counts) < 2:
        found = f"all have {next(iter(counts))!r}" if counts else "there are none"
        raise UserError(f"--examples {path}: give examples of two classes or more, in {label_column!r} {found}")
    for group in find_alike(counts):
        say(f"labels that look the same, each a class of its own: {', '.join(map(repr, group))}")
    for name in find_like_missing(counts):
        say(f"label {name!r} is a class like others; leave its rows out where it stands for a missing one")
    labels_of: dict[Text, list[str]] = defaultdict(list)
    for text, label in zip(texts, labels, strict=True):
        labels_of[text].append(label)
    if torn := [f"{shown(text[0])}: {', '.join(found)}" for text, found in labels_of.items() if len(set(found)) > 1]:
        say(f"{len(torn)} texts have several labels, the first {torn[0]}")
    return Examples(texts, labels)
