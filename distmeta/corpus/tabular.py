"""CSV and TSV: rows of text fields. A broken row is told apart from its neighbours and never swallows them."""

import csv
import sys
from collections import deque
from collections.abc import Iterator

from distmeta.corpus.records import Dropped, Record, Records, RecordSettings, Tally

Lines = Iterator[tuple[int, str] | Dropped]
Rows = Iterator[tuple[int, list[str]] | Dropped]

csv.field_size_limit(sys.maxsize)  # the lines and the rows are bounded here


def read_tsv_rows(lines: Lines) -> Rows:
    """Yield (line number, fields). A TSV file has no quotes: a tab always ends a field, a line break a row."""
    for line in lines:
        yield line if isinstance(line, Dropped) else (line[0], line[1].split("\t") if line[1] else [])


def read_csv_rows(lines: Lines, longest: int, width: int | None = None) -> Rows:
    """Yield (number of the first line, fields) of each row of at most `longest` characters.

    `width` is the number of fields of a row; unset: that of the first. A row over several lines is believed where its
    quotes are correct and its width is right. Otherwise its first line is dropped as a stray quote and reading goes on
    with the line behind it.
    """
    waiting: deque[tuple[int, str] | Dropped] = deque()  # lines that a broken row had taken
    taken: list[tuple[int, str] | Dropped] = []

    def take() -> Iterator[str]:
        size = 0
        while (line := waiting.popleft() if waiting else next(lines, None)) is not None:
            taken.append(line)
            if isinstance(line, Dropped):
                raise csv.Error("a line that cannot be read")
            size += len(line[1]) + 1
            if size > longest and len(taken) > 1:
                raise csv.Error("longer than a row may be")
            yield line[1] + "\n"

    while True:
        taken.clear()
        try:
            fields = next(csv.reader(take(), strict=True), None)
            if fields is None:
                return
            if len(taken) > 1 and width is not None and len(fields) != width:
                raise csv.Error("not the width of a row")
        except csv.Error:
            first = taken[0]
            waiting.extendleft(reversed(taken[1:]))
            yield first if isinstance(first, Dropped) else Dropped(first[0], "stray_quote")
            continue
        width = len(fields) if width is None else width
        assert not isinstance(taken[0], Dropped)  # it would have raised
        yield taken[0][0], fields


def records_of_rows(rows: Rows, header: list[str], settings: RecordSettings) -> Records:
    """Yield the records in rows whose columns have the names in `header`, which holds all that `settings` ask for."""
    text = header.index(settings.text_column)
    pair = None if settings.pair_column is None else header.index(settings.pair_column)
    label = None if settings.label_column is None else header.index(settings.label_column)
    for row in rows:
        if isinstance(row, Dropped):
            yield row
            continue
        number, fields = row
        if not fields:
            yield Dropped(number, "empty")
        elif len(fields) != len(header):
            yield Dropped(number, "wrong_number_of_fields")
        else:
            yield Record(
                number,
                fields[text],
                None if pair is None else fields[pair],
                None if label is None else fields[label],
            )


def read_header(rows: Rows, tally: Tally) -> list[str] | None:
    """Return the first row as column names; None, with a problem in `tally`, where it cannot be read."""
    first = next(rows, None)
    if first is None:
        return None
    if isinstance(first, Dropped):
        tally.problems.append(f"its header line cannot be read ({first.reason})")
        return None
    return first[1]
