"""The labelled examples in a file, as `distmeta adapt` reads them: by the readers of the corpus."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from distmeta.adapt.base import Text
from distmeta.corpus.config import SourceConfig
from distmeta.corpus.readers import read_piece
from distmeta.corpus.records import RecordSettings, Tally, clean_records
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
    path: str, text_column: str, label_column: str, pair_column: str | None, say: Callable[[str], None]
) -> Examples:
    """The examples in a file (CSV, TSV, JSON lines, Parquet, or a data set of a hub). Rows that are left out are told.

    Raises:
        UserError: there is no such file or column, something in it cannot be read, or it has fewer than two classes.
    """
    settings = RecordSettings("line", "none", False, MOST_BYTES, text_column, pair_column, label_column)
    texts: list[Text] = []
    labels: list[str] = []
    try:
        pieces = resolve_sources([SourceConfig(path=path)]).files
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
            raise UserError(f"--examples {piece.name}: {tally.problems[0]}")
        for reason, count in tally.dropped.items():
            why = reason.replace("_", " ")
            say(f"{piece.name}: {count} rows left out: {why}, the first in {tally.places[reason][0]}")
    counts = Counter(labels)
    if len(counts) < 2:
        found = f"all have {next(iter(counts))!r}" if counts else "there are none"
        raise UserError(f"--examples {path}: give examples of two classes or more, in {label_column!r} {found}")
    return Examples(texts, labels)
