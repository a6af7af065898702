"""Tables with typed columns: Parquet files and Hugging Face datasets. Numbers of classes become their names."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmeta.corpus.hub import class_names, load_dataset
from distmeta.corpus.json_rows import lacks
from distmeta.corpus.kinds import HEAD, compression_of, what_it_is
from distmeta.corpus.pieces import Piece
from distmeta.corpus.records import Dropped, Record, Records, RecordSettings, Tally
from distmeta.corpus.streams import filesystem, read_head
from distmeta.corpus.text_files import RefusedFile

BATCH_ROWS = 256
NO_CLASS = -1
"""What a column of class numbers of `datasets` holds where there is no class."""

ClassNames = Mapping[str, Sequence[str]]


class _Absent(str):
    """Stands for a value that is missing, and says what stood there."""


class _Wrong(str):
    """Stands for a value that cannot be used: the detail of its reason."""


Cell = bytes | str | _Absent | _Wrong
"""A value as UTF-8 bytes that may be broken, or as text, or why there is none."""


def read_columns(piece: Piece, settings: RecordSettings, tally: Tally) -> Records:
    """Yield the records of a Parquet file or of a Hugging Face dataset. Raises RefusedFile for what holds none."""
    number = piece.first_record
    needed = (settings.text_column, settings.pair_column, settings.label_column)
    try:
        names, batches = _open_parquet(piece, settings) if piece.format == "parquet" else _open_hub(piece, settings)
        for batch in batches:
            columns = [
                [None] * len(batch) if name is None else _cells(batch.column(name), name, names.get(name))
                for name in needed
            ]
            for cells in zip(*columns, strict=True):
                yield _record(number, cells)
                number += 1
    except (pa.ArrowException, OSError, ValueError) as error:  # the last one of damaged names of columns
        tally.problems.append(f"cannot be read after row {number - 1}: {error}")


def _record(number: int, cells: Sequence[Cell | None]) -> Record | Dropped:
    values: list[str | None] = []
    absent: list[str] = []
    for cell in cells:
        if isinstance(cell, _Wrong):
            return Dropped(number, "unknown_class", cell)
        absent.append(cell if isinstance(cell, _Absent) else "")
        if isinstance(cell, _Absent):
            values.append(None)
            continue
        try:
            values.append(cell.decode() if isinstance(cell, bytes) else cell)
        except UnicodeDecodeError as error:
            return Dropped(number, "invalid_utf8", f"byte 0x{error.object[error.start]:02x} at byte {error.start + 1}")
    text, pair, label = values
    return Record(number, text, pair, label, absent[0] or absent[2] or absent[1])


def _open_parquet(piece: Piece, settings: RecordSettings) -> tuple[ClassNames, Iterator[pa.RecordBatch]]:
    head = read_head(piece.root, piece.path, HEAD)
    if not head.startswith(b"PAR1") and head:
        found = what_it_is(head) or (
            f"{compression_of(head, '') or 'text'}",
            "say its format, or end its name as it is",
        )
        raise RefusedFile("is not Parquet; it seems to be {}: {}".format(*found))
    file = pq.ParquetFile(filesystem(piece.root).open_input_file(piece.path))
    _require(settings, file.schema_arrow.names)
    groups = list(range(piece.start, file.num_row_groups if piece.end is None else piece.end))
    names = _class_names(file.schema_arrow)
    return names, file.iter_batches(BATCH_ROWS, groups, settings.columns, use_threads=False)


def _class_names(schema: pa.Schema) -> ClassNames:
    """Return the names of the classes by column, which `datasets` keeps beside the schema of its Parquet files."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        labels = {
            name: feature
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
        return {
            name: feature.get("names") or list(map(str, range(feature["num_classes"])))
            for name, feature in labels.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _open_hub(piece: Piece, settings: RecordSettings) -> tuple[ClassNames, Iterator[pa.Table]]:
    dataset = load_dataset(piece.path, piece.hub_config, piece.hub_split)
    _require(settings, dataset.column_names)
    names = {name: found for name in settings.columns if (found := class_names(dataset, name)) is not None}
    rows = dataset.select_columns(settings.columns).select(range(piece.start, piece.end or len(dataset)))
    return names, rows.with_format("arrow").iter(BATCH_ROWS)


def _require(settings: RecordSettings, present: Sequence[str]) -> None:
    if missing := [name for name in settings.columns if name not in present]:
        raise RefusedFile(lacks(missing, present))
    if twice := [name for name in settings.columns if present.count(name) > 1]:
        raise RefusedFile(f"has column {twice[0]!r} {present.count(twice[0])} times")


def _cells(column: pa.Array | pa.ChunkedArray, name: str, names: Sequence[str] | None) -> Iterable[Cell]:
    """Return a column's values as text, numbers and truth values as Python and JSON spell them."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    null = _Absent(f"{name!r} is null")
    if names is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return [null if value is None else _class_name(value, name, names) for value in column.to_pylist()]
    if pa.types.is_floating(kind):
        values = zip(
            column.to_pylist(), column.to_numpy(zero_copy_only=False).astype(kind.to_pandas_dtype()), strict=True
        )
        return [null if value is None else _spelled(value, number, name) for value, number in values]
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind) or pa.types.is_decimal(kind):
        column = column.cast(pa.string())
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise RefusedFile(f"column {name!r} holds {kind}, not text")
    return [null if value is None else value for value in column.cast(pa.large_binary()).to_pylist()]


def _spelled(value: float, number: np.floating, name: str) -> Cell:
    """As `number`, the value in its own width, spells it: 0.1 of four bytes is 0.1."""
    return _Absent(f"{name!r} is NaN") if math.isnan(value) else str(number)


def _class_name(value: float, name: str, names: Sequence[str]) -> Cell:
    if math.isnan(value) or value == NO_CLASS:
        return _Absent(f"{name!r} is {value}, no class")
    if value != int(value) or not 0 <= value < len(names):
        return _Wrong(f"{name!r} is {value}, and its classes go from 0 to {len(names) - 1}")
    return names[int(value)]
