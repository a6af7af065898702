"""CSV and TSV: rows of text fields. A broken row is told apart from its neighbours and never swallows them."""

import csv
import sys
from collections import deque
from collections.abc import Iterator, Sequence

from distmeta.corpus.json_rows import lacks
from distmeta.corpus.records import Dropped, Record, Records, RecordSettings, Tally, shown
from distmeta.corpus.text_files import Lines, RefusedFile

Rows = Iterator[tuple[int, list[str]] | Dropped]

LABELS_SEEN = 100_000
"""So many labels of rows on one line are remembered, to know rows that a stray quote would swallow."""

csv.field_size_limit(sys.maxsize)  # the lines and the rows are bounded here


def read_table(
    lines: Lines, format: str, columns: Sequence[str] | None, settings: RecordSettings, tally: Tally
) -> Records:
    """Yield the records of a CSV or TSV file; `columns` are the names of one without a header line.

    Raises RefusedFile where the columns that are needed are not there.
    """
    reader = CsvRows(lines, settings, len(columns) if columns else None)
    rows = read_tsv_rows(lines) if format == "tsv" else reader.rows()
    header = list(columns) if columns else _header(rows)
    if header is None:
        return
    if missing := [name for name in settings.columns if name not in header]:
        raise RefusedFile(lacks(missing, header) + _other_delimiter(header, format))
    if twice := [name for name in settings.columns if header.count(name) > 1]:
        raise RefusedFile(f"has column {twice[0]!r} {header.count(twice[0])} times")
    reader.label = None if settings.label_column is None else header.index(settings.label_column)
    yield from _records(rows, header, "\t" if format == "tsv" else ",", settings)
    if reader.doubtful:
        tally.notes.append(
            f"{reader.doubtful} rows stand over several lines each of which could be a row of its own, the first at "
            f"line {reader.first_doubtful}: are its quotes right?"
        )


def _header(rows: Rows) -> list[str] | None:
    first = next(rows, None)
    if isinstance(first, Dropped):
        raise RefusedFile(f"its header line cannot be read ({first.reason}: {first.detail})")
    return None if first is None else first[1]


def _other_delimiter(header: Sequence[str], format: str) -> str:
    if len(header) != 1:
        return ""
    others = [each for each in ",;\t|" if each in header[0] and each != ("\t" if format == "tsv" else ",")]
    if not others:
        return ""
    remedy = {"\t": "set format: tsv", ",": "set format: csv"}.get(others[0], "write it with commas")
    return f"; its fields seem to be set apart by {others[0]!r}: {remedy}"


def read_tsv_rows(lines: Lines) -> Rows:
    """Yield (line number, fields). A TSV file has no quotes: a tab always ends a field, a line break a row."""
    for line in lines:
        yield line if isinstance(line, Dropped) else (line[0], line[1].split("\t") if line[1] else [])


class CsvRows:
    """Reads the rows of a CSV file.

    A row over several lines is believed where its quotes are correct and its width is right, unless each of its lines
    is a whole row by itself with a label that other rows have, too: then two stray quotes stand around good rows.
    Otherwise its first line is dropped as a stray quote and reading goes on with the line behind it.
    """

    def __init__(self, lines: Lines, settings: RecordSettings, width: int | None = None) -> None:
        self.label: int | None = None
        """The column of the labels, once it is known."""
        self.doubtful = 0
        """Rows over several lines each of which could be a row of its own."""
        self.first_doubtful = 0
        self._width = width
        self._lines, self._longest = lines, settings.max_record_bytes
        self._labels: set[str] = set()

    def rows(self) -> Rows:
        """Yield (number of the first line, fields) of each row of at most as many characters as a record may have.

        Where no width was given, it is that of the first row.
        """
        waiting: deque[tuple[int, str] | Dropped] = deque()  # lines that a broken row had taken
        taken: list[tuple[int, str] | Dropped] = []

        def take() -> Iterator[str]:
            size = 0
            while (line := waiting.popleft() if waiting else next(self._lines, None)) is not None:
                taken.append(line)
                if isinstance(line, Dropped):
                    raise csv.Error("a line that cannot be read stands within the quotes")
                size += len(line[1]) + 1
                if size > self._longest and len(taken) > 1:
                    raise csv.Error("the quote does not end")
                yield line[1] + "\n"

        while True:
            taken.clear()
            try:
                fields = next(csv.reader(take(), strict=True), None)
                if fields is None:
                    return
                if len(taken) > 1:
                    self._check_long_row([line[1] for line in taken if not isinstance(line, Dropped)], fields)
            except csv.Error as error:
                first = taken[0]
                waiting.extendleft(reversed(taken[1:]))
                yield first if isinstance(first, Dropped) else Dropped(first[0], "stray_quote", str(error), first[1])
                continue
            self._width = len(fields) if self._width is None else self._width
            assert not isinstance(taken[0], Dropped)  # it would have raised
            if len(taken) > 1 and self._could_be_rows([line[1] for line in taken if not isinstance(line, Dropped)]):
                self.doubtful += 1
                self.first_doubtful = self.first_doubtful or taken[0][0]
            elif len(taken) == 1 and self.label is not None and len(fields) == self._width:
                self._remember(fields[self.label])
            yield taken[0][0], fields

    def _check_long_row(self, lines: Sequence[str], fields: Sequence[str]) -> None:
        if self._width is None:
            return
        if len(fields) != self._width:
            raise csv.Error(f"{len(fields)} fields over {len(lines)} lines, {self._width} wanted")
        if self.label is not None and self._could_be_rows(lines):
            labels = [line.split(",")[self.label].strip('"') for line in lines]
            if all(label in self._labels for label in labels):
                raise csv.Error(f"it would swallow {len(lines) - 1} rows")

    def _could_be_rows(self, lines: Sequence[str]) -> bool:
        return self._width is not None and self._width > 1 and all(line.count(",") == self._width - 1 for line in lines)

    def _remember(self, label: str) -> None:
        if len(self._labels) < LABELS_SEEN:
            self._labels.add(label)


def _records(rows: Rows, header: list[str], delimiter: str, settings: RecordSettings) -> Records:
    text = header.index(settings.text_column)
    pair = None if settings.pair_column is None else header.index(settings.pair_column)
    label = None if settings.label_column is None else header.index(settings.label_column)

    def label_in(fields: Sequence[str]) -> str | None:
        """The label of a row that may be too wide: from the side on which no text stands before it."""
        if label is None:
            return None
        place = label if label < text else label - len(header)
        return fields[place].strip('"') if -len(fields) <= place < len(fields) else None

    for row in rows:
        if isinstance(row, Dropped):
            yield row if row.line is None else row._replace(label=label_in(row.line.split(delimiter)))
            continue
        number, fields = row
        if not fields:
            yield Dropped(number, "empty")
        elif len(fields) != len(header):
            detail = f"{len(fields)} fields, {len(header)} wanted, in {shown(delimiter.join(fields))}"
            yield Dropped(number, "wrong_number_of_fields", detail, label=label_in(fields))
        elif fields == header:
            yield Dropped(number, "header_again")
        else:
            yield Record(
                number,
                fields[text],
                None if pair is None else fields[pair],
                None if label is None else fields[label],
            )
