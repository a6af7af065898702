"""Readers: the records in a piece of a source, one reader a format."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from distmeta.corpus.builtin import python_docs
from distmeta.corpus.hub import class_names, load_dataset
from distmeta.corpus.records import Dropped, Reason, Record, Records, RecordSettings, Tally
from distmeta.corpus.sources import Piece
from distmeta.corpus.streams import BYTE_ORDER_MARK, BrokenStream, decompress, filesystem, read_bytes, split_lines
from distmeta.corpus.tabular import Lines, read_csv_rows, read_header, read_tsv_rows, records_of_rows

BATCH_ROWS = 256


class RefusedFile(Exception):
    """A file cannot give records at all. The message says why."""


def read_piece(piece: Piece, settings: RecordSettings, tally: Tally) -> Records:
    """Yield the records of a piece, good and broken, in order.

    What is wrong with the file as a whole goes into the problems of `tally`. The consumer counts there what it takes,
    as `clean_records` does.
    """
    if piece.format in ("text", "builtin") and settings.label_column is not None:
        tally.problems.append(f"plain text has no column {settings.label_column!r}")
        return
    if piece.format == "builtin":
        yield from (Record(number, text) for number, text in enumerate(python_docs(), 1))
    elif piece.format in ("parquet", "huggingface"):
        yield from _read_tables(piece, settings, tally)
    elif piece.format in ("csv", "tsv"):
        yield from _read_rows(piece, settings, tally)
    elif piece.format == "jsonl":
        yield from _read_json_lines(_read_lines(piece, settings, tally), settings, tally)
    elif settings.record == "paragraph":
        yield from _read_paragraphs(_read_lines(piece, settings, tally), settings.max_record_bytes)
    else:
        for line in _read_lines(piece, settings, tally):
            yield line if isinstance(line, Dropped) else Record(*line)
    if tally.read == 0 and not tally.problems:
        tally.problems.append("empty: it has no records")


def _lacks(missing: list[str], present: Iterable[str]) -> str:
    return f"has no column {', '.join(map(repr, missing))}; its columns are {', '.join(map(repr, present)) or 'none'}"


def _read_lines(piece: Piece, settings: RecordSettings, tally: Tally) -> Lines:
    """Yield (line number, text) without line break and byte-order mark."""
    number = piece.first_record - 1
    try:
        chunks = read_bytes(piece.root, piece.path, piece.start, piece.end)
        for line in split_lines(decompress(chunks) if piece.gzip else chunks, settings.max_record_bytes):
            number += 1
            if line is None:
                yield Dropped(number, "too_long")
                continue
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if b"\0" in line:
                yield Dropped(number, "nul_byte")
                continue
            try:
                text = line.decode()
            except UnicodeDecodeError:
                yield Dropped(number, "invalid_utf8")
                continue
            yield number, text
    except BrokenStream as error:
        tally.problems.append(f"{error} after line {number}")
        if error.cut_a_line:
            yield Dropped(number + 1, "truncated")
    except OSError as error:
        tally.problems.append(f"cannot be read after line {number}: {error}")


def _read_paragraphs(lines: Lines, longest: int) -> Records:
    """Yield paragraphs by the number of their first line. A line that cannot be read spoils its paragraph."""
    start, size, held = 0, 0, list[str]()
    reason: Reason | None = None
    for line in lines:
        if isinstance(line, Dropped):
            start, reason = start or line.number, reason or line.reason
            continue
        number, text = line
        if text.strip():
            start = start or number
            size += len(text)
            reason = reason or ("too_long" if size > longest else None)
            if reason is None:
                held.append(text)
        elif start:
            yield Dropped(start, reason) if reason else Record(start, "\n".join(held))
            start, size, held, reason = 0, 0, [], None
    if start:
        yield Dropped(start, reason) if reason else Record(start, "\n".join(held))


def _read_rows(piece: Piece, settings: RecordSettings, tally: Tally) -> Records:
    lines = _read_lines(piece, settings, tally)
    if piece.format == "tsv":
        rows = read_tsv_rows(lines)
    else:
        rows = read_csv_rows(lines, settings.max_record_bytes, len(piece.columns) if piece.columns else None)
    header = list(piece.columns) if piece.columns else read_header(rows, tally)
    if header is None:
        return
    if missing := [name for name in settings.columns if name not in header]:
        tally.problems.append(_lacks(missing, header))
        return
    yield from records_of_rows(rows, header, settings)


_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
"""Numbers stay as they are spelled: as a label, 7 and "7" are the same name and 1e3 is not 1000."""


def _read_json_lines(lines: Lines, settings: RecordSettings, tally: Tally) -> Records:
    fields = Counter[str]()
    for line in lines:
        if isinstance(line, Dropped):
            yield line
            continue
        number, text = line
        if not text.strip():
            yield Dropped(number, "empty")
            continue
        try:
            value = _DECODER.decode(text)
        except (ValueError, RecursionError):
            yield Dropped(number, "not_json")
            continue
        if not isinstance(value, dict):
            yield Dropped(number, "not_an_object")
            continue
        fields.update(value.keys())
        values = [None if name is None else value.get(name) for name in _record_columns(settings)]
        if any(isinstance(each, dict | list) for each in values):
            yield Dropped(number, "not_text")
        else:
            yield Record(number, *(("false", "true")[each] if isinstance(each, bool) else each for each in values))
    if fields and (missing := [name for name in settings.columns if name not in fields]):
        tally.problems.append(_lacks(missing, fields))


def _record_columns(settings: RecordSettings) -> tuple[str, str | None, str | None]:
    return settings.text_column, settings.pair_column, settings.label_column


def _read_tables(piece: Piece, settings: RecordSettings, tally: Tally) -> Records:
    number = piece.first_record
    try:
        batches = _parquet_batches(piece, settings) if piece.format == "parquet" else _hub_batches(piece, settings)
        for batch in batches:
            columns = [
                [None] * len(batch) if name is None else _as_utf8(batch.column(name), name)
                for name in _record_columns(settings)
            ]
            for values in zip(*columns, strict=True):
                try:
                    yield Record(number, *(None if value is None else value.decode() for value in values))
                except UnicodeDecodeError:
                    yield Dropped(number, "invalid_utf8")
                number += 1
    except RefusedFile as error:
        tally.problems.append(str(error))
    except (pa.ArrowException, OSError) as error:
        tally.problems.append(f"cannot be read after row {number - 1}: {error}")


def _parquet_batches(piece: Piece, settings: RecordSettings) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(filesystem(piece.root).open_input_file(piece.path))
    if missing := [name for name in settings.columns if name not in file.schema_arrow.names]:
        raise RefusedFile(_lacks(missing, file.schema_arrow.names))
    groups = list(range(piece.start, file.num_row_groups if piece.end is None else piece.end))
    yield from file.iter_batches(BATCH_ROWS, groups, settings.columns, use_threads=False)


def _hub_batches(piece: Piece, settings: RecordSettings) -> Iterator[pa.Table]:
    dataset = load_dataset(piece.path, piece.hub_config, piece.hub_split)
    if missing := [name for name in settings.columns if name not in dataset.column_names]:
        raise RefusedFile(_lacks(missing, dataset.column_names))
    rows = dataset.select_columns(settings.columns).select(range(piece.start, piece.end or len(dataset)))
    for table in rows.with_format("arrow").iter(BATCH_ROWS):
        for index, name in enumerate(table.column_names):
            if names := class_names(dataset, name):
                labels = [
                    names[value] if value is not None and value >= 0 else None for value in table[name].to_pylist()
                ]
                table = table.set_column(index, name, pa.array(labels, pa.string()))
        yield table


def _as_utf8(column: pa.Array | pa.ChunkedArray, name: str) -> list[bytes | None]:
    """Return a column's values as text in UTF-8, numbers and truth values as they are spelled."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        column = column.cast(pa.string())
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise RefusedFile(f"column {name!r} holds {kind}, not text")
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return values
