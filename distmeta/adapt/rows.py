"""Whole rows of tables, read and written in constant memory: what `distmeta predict` adds its columns to."""

import csv
import json
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from distmeta.corpus.config import check_encoding
from distmeta.corpus.kinds import COMPRESSIONS
from distmeta.corpus.pieces import Piece
from distmeta.corpus.records import Dropped, RecordSettings, Tally
from distmeta.corpus.sources import FORMATS
from distmeta.corpus.streams import BrokenStream
from distmeta.corpus.tabular import CsvRows, read_tsv_rows
from distmeta.corpus.text_files import RefusedFile, TextFile
from distmeta.errors import UserError, first_line
from distmeta.paths import check_folder

Row = dict[str, Any]
Write = Callable[[Sequence[Row]], None]

READ = ("csv", "tsv", "jsonl", "parquet")
WRITTEN = ("csv", "jsonl", "parquet")
BATCH_ROWS = 1024
MOST_BYTES = 100_000_000
"""Of a row."""


def format_of(path: Path, known: Sequence[str], option: str) -> str:
    """How a table is read or written, by the ending of its name.

    Raises:
        UserError: it is none that is known.
    """
    suffix = path.suffix.lower()
    suffix = path.with_suffix("").suffix.lower() if suffix in COMPRESSIONS and known is READ else suffix
    format = FORMATS.get(suffix, "")
    if format not in known:
        endings = ", ".join(ending for ending, each in FORMATS.items() if each in known)
        raise UserError(f"{option} {path}: its name must end in one of {endings}")
    return format


def encoding_of(name: str | None) -> str | None:
    """A text encoding of Python's, as `--encoding` names it.

    Raises:
        UserError: it is none.
    """
    try:
        return name and check_encoding(name)
    except ValueError as error:
        raise UserError(f"--encoding: {error}") from None


def with_options(problem: str) -> str:
    """What the readers of the corpus say of a file, with the options here for the keys of a source there."""
    problem = re.sub(r"set its encoding, as in \{path: \.\.\., encoding: (.+?)\}", r"give --encoding \1", problem)
    return re.sub(r"set format: (\w+)", r"let its name end in .\1", problem)


class Table:
    """The rows of a file, each as a dictionary of its values as they stand there: those of CSV and TSV are text.

    Attributes:
        columns: their names, of JSON lines those of the first row.
        types: those of columns that are known, beside what is in the rows.
        left_out: what could not be read as a row, a line each, once `rows` has ended.

    Raises:
        UserError: it is not there, or no table.
    """

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no file is there")
        self._encoding = encoding
        self.path, self.format = path, format_of(path, READ, "FILE")
        self.left_out: list[str] = []
        self._dropped = 0
        self._tally = Tally()
        self._rows = self._reader()
        self.columns: list[str] = []
        self.types = pa.schema([])
        self._first = next(self._rows, None)  # by which the columns are known
        self.columns = self.columns or list(self._first or {})
        if self._first is None and self._dropped:
            by_lines = "; JSON is read by lines, an object each" if self.format == "jsonl" else ""
            raise UserError(f"{path}: no row of it can be read: {self.left_out[0]}{by_lines}")

    def need(self, columns: Sequence[str]) -> None:
        """Refuses a table without these columns.

        Raises:
            UserError: one is not there.
        """
        if self.columns and (missing := [name for name in columns if name not in self.columns]):
            raise UserError(f"{self.path}: no column {missing[0]!r}; it has {', '.join(map(repr, self.columns))}")

    def rows(self) -> Iterator[Row]:
        """Yield each row, once.

        Raises:
            UserError: the file breaks off.
        """
        if self._first is not None:
            yield self._first
        yield from self._rows
        if self._dropped:
            more = self._dropped - len(self.left_out)
            self.left_out += [f"and {more} more"] if more else []

    def _reader(self) -> Iterator[Row]:
        try:
            yield from self._parquet() if self.format == "parquet" else self._text()
        except (RefusedFile, BrokenStream, OSError, pa.ArrowException) as error:
            raise UserError(f"{self.path}: {with_options(str(error))}") from None
        if self._tally.problems:
            raise UserError(f"{self.path}: {with_options(self._tally.problems[0])}")

    def _parquet(self) -> Iterator[Row]:
        file = pq.ParquetFile(self.path)
        self.types = file.schema_arrow
        self.columns = self.types.names
        for batch in file.iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()

    def _text(self) -> Iterator[Row]:
        piece = Piece(self.path.name, "", str(self.path), self.format, self.path.stat().st_size, self._encoding)
        settings = RecordSettings("line", "none", False, MOST_BYTES, "", None, None)
        file = TextFile(piece, settings, self._tally)
        lines = file.lines()
        if self.format == "jsonl":
            for line in lines:
                if isinstance(line, Dropped):
                    self._drop(line)
                elif line[1].strip():
                    yield from self._json(*line)
        else:
            rows = read_tsv_rows(lines) if self.format == "tsv" else CsvRows(lines, settings).rows()
            yield from self._fields(rows)
        file.finish()

    def _json(self, number: int, text: str) -> Iterator[Row]:
        try:
            value = json.loads(text)
        except ValueError as error:
            value = f"not JSON ({error})"
        if isinstance(value, dict):
            yield value
        else:
            self._drop(Dropped(number, "not_an_object", value if isinstance(value, str) else "not an object"))

    def _fields(self, rows: Iterable[tuple[int, list[str]] | Dropped]) -> Iterator[Row]:
        header: list[str] | None = None
        for row in rows:
            if isinstance(row, Dropped):
                self._drop(row)
            elif header is None:
                header = self.columns = row[1]
                self.types = pa.schema([(name, pa.string()) for name in header])
            elif len(row[1]) == len(header):
                yield dict(zip(header, row[1], strict=True))
            elif row[1]:
                detail = f"{len(row[1])} fields, {len(header)} wanted"
                self._drop(Dropped(row[0], "wrong_number_of_fields", detail))

    def _drop(self, row: Dropped) -> None:
        self._dropped += 1
        if self._dropped <= 5:
            self.left_out.append(f"line {row.number}: {row.detail or row.reason.replace('_', ' ')}")


@contextmanager
def writer(path: Path | None, format: str, columns: Sequence[str], types: pa.Schema) -> Iterator[Write]:
    """What writes rows, to a file that is there whole or not at all, or to standard output.

    Args:
        path: the file; None: standard output.
        format: one of `WRITTEN`.
        columns: those of every row; of JSON lines of the first one at least.
        types: those of some columns, for Parquet; the others have those of the first rows.

    Raises:
        UserError: it cannot be written.
    """
    if path is None:
        try:
            yield _text_writer(sys.stdout, format, columns)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads has enough
            raise
        except OSError as error:
            raise UserError(f"standard output cannot be written: {first_line(error)}") from None
        return
    check_folder(path.parent, "--output", writable=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if format == "parquet":
            with _ParquetRows(unfinished, types) as rows:
                yield rows.write
        else:
            with unfinished.open("w", encoding="utf-8", newline="") as file:
                yield _text_writer(file, format, columns)
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"--output: {path}: cannot be written: {first_line(error)}") from None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _text_writer(file: TextIO, format: str, columns: Sequence[str]) -> Write:
    if format == "jsonl":
        return lambda rows: file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    table = csv.DictWriter(file, columns, lineterminator="\n")
    table.writeheader()

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            _refuse_others(row, columns)
            table.writerow(row)

    return write


def _refuse_others(row: Row, columns: Sequence[str]) -> None:
    if others := row.keys() - set(columns):
        raise UserError(
            f"--output: a row has {min(others)!r}, which the first ones have not; write JSON lines (.jsonl)"
        )


class _ParquetRows:
    """Rows of a Parquet file."""

    def __init__(self, path: Path, types: pa.Schema) -> None:
        self._path, self._types = path, types
        self._schema: pa.Schema | None = None

    def __enter__(self) -> "_ParquetRows":
        return self

    def __exit__(self, *_: object) -> None:
        if self._schema is None:
            self.write([])
        self._writer.close()

    def write(self, rows: Sequence[Row]) -> None:
        """Adds some."""
        if self._schema is None:
            found = pa.Table.from_pylist(list(rows)).schema if rows else self._types
            known = {field.name: field for field in self._types}
            self._schema = pa.schema([known.get(field.name, field) for field in found])
            self._writer = pq.ParquetWriter(self._path, self._schema)
        for row in rows:
            _refuse_others(row, self._schema.names)
        try:
            self._writer.write_table(pa.Table.from_pylist(list(rows), schema=self._schema))
        except pa.ArrowException as error:
            raise UserError(
                f"--output: a row is not of the types of the first ones ({error}); write JSON lines"
            ) from None
