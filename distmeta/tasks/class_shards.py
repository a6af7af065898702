"""Class shards: files with the examples of whole classes, of which a draw reads the classes that it takes and no more.

A shard is a Parquet file with one row group a class. Which classes it holds, and how many different texts each has,
stands in its metadata, so that an index of a corpus is read without its rows.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmeta.tasks.episode import Example

V = TypeVar("V")

COLUMNS = ["row", "text", "pair", "text_key", "input_ids", "mask_position"]
"""Those that tasks are made of; `class` is in the index."""
INDEX = b"distmeta.classes"
CACHE_BYTES = 2**28
"""Examples that a process holds, so that its memory does not grow with its corpus (bytes); they take a third more."""
MOST_GROUPS = 4096
"""Row groups of the files that stay open; what is known of each takes about 6 kB."""


def write_class_shard(table: pa.Table, path: Path) -> None:
    """Write a table with `class`, `COLUMNS` and others, sorted by class: the same bytes for the same content."""
    # Statistics and a dictionary would be larger than the values of most groups.
    options: dict[str, Any] = {"use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(path, table.schema, compression="zstd", compression_level=1, **options) as writer:
        index = []
        for each in _by_class(table):
            writer.write_table(each, row_group_size=len(each))
            index.append(_entry(each))
        writer.add_key_value_metadata({INDEX: json.dumps(index, ensure_ascii=False).encode()})


def _by_class(table: pa.Table) -> list[pa.Table]:
    """The parts of a table that is sorted by class."""
    names = table["class"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.r_[len(names) > 0, names[1:] != names[:-1]]).tolist()
    return [table.slice(start, end - start) for start, end in zip(starts, [*starts[1:], len(names)], strict=True)]


def _entry(examples: pa.Table) -> tuple[str, int]:
    return examples["class"][0].as_py(), len(examples["text_key"].unique())


@dataclass(frozen=True, slots=True)
class IndexedClass:
    """Where a class is to be found."""

    name: str
    texts: int
    """How many different ones it has."""
    part: Path
    group: int
    """The row group of the part."""


def read_index(parts: Iterable[Path]) -> list[IndexedClass]:
    """Return the classes of some shards by name, without reading their rows."""
    found = [
        IndexedClass(name, texts, part, group) for part in parts for group, (name, texts) in enumerate(_entries(part))
    ]
    return sorted(found, key=lambda each: each.name)


def _entries(part: Path) -> list[tuple[str, int]]:
    metadata = pq.read_metadata(part).metadata or {}
    return json.loads(metadata[INDEX]) if INDEX in metadata else [_entry(each) for each in _OlderShard(part).groups]


class ClassExamples:
    """The examples of one class, in memory."""

    def __init__(self, table: pa.Table) -> None:
        columns = {name: table[name].combine_chunks() for name in COLUMNS}
        self.nbytes: int = table.nbytes
        self.text_keys: np.ndarray = columns["text_key"].to_numpy()
        """A text is the same as another of the task where its key is."""
        self._row, self._text, self._pair = (columns[name] for name in ("row", "text", "pair"))
        self._ids: np.ndarray = columns["input_ids"].values.to_numpy()
        self._ends: np.ndarray = columns["input_ids"].offsets.to_numpy()
        self._masks: np.ndarray = columns["mask_position"].to_numpy()

    def example(self, row: int, label: int) -> Example:
        """Return one of them."""
        # Value by value: a task has few of a class's rows, for which Arrow's own `take` is slower.
        ids = tuple(self._ids[self._ends[row] : self._ends[row + 1]].tolist())
        text, pair = self._text[row].as_py(), self._pair[row].as_py()
        return Example(self._row[row].as_py(), label, text, ids, int(self._masks[row]), pair)


class _OlderShard:
    """A shard as a run may have begun with it: with its classes in one row group, and pairs in one string."""

    def __init__(self, part: Path) -> None:
        table = pq.read_table(part, columns=["class", *(name for name in COLUMNS if name != "pair")], use_threads=False)
        self.groups = _by_class(table.append_column("pair", pa.nulls(len(table), pa.string())))
        self.num_row_groups = len(self.groups)

    def read_row_group(self, number: int, **_: Any) -> pa.Table:
        """Return the examples of a class."""
        return self.groups[number]


def _open(part: Path) -> pq.ParquetFile | _OlderShard:
    file = pq.ParquetFile(part)
    return file if INDEX in (file.metadata.metadata or {}) else _OlderShard(part)


class ClassReader:
    """Reads classes, and keeps those that were read last. Threads may share it."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self._lock = Lock()
        self._classes = _Recent[ClassExamples](cache_bytes, lambda examples: examples.nbytes)
        self._files = _Recent[pq.ParquetFile | _OlderShard](MOST_GROUPS, lambda file: file.num_row_groups)

    def read(self, place: IndexedClass) -> ClassExamples:
        """Return the examples of a class."""
        with self._lock:
            return self._classes.get((place.part, place.group), lambda: self._read(place))

    def _read(self, place: IndexedClass) -> ClassExamples:
        file = self._files.get(place.part, lambda: _open(place.part))
        return ClassExamples(file.read_row_group(place.group, columns=COLUMNS, use_threads=False))

    @property
    def open_files(self) -> int:
        """Shards that are open."""
        return len(self._files)

    @property
    def held_bytes(self) -> int:
        """Bytes of the examples that are held."""
        return self._classes.held


class _Recent(Generic[V]):
    """What was asked for last, up to a size in all; the last of it whatever its size."""

    def __init__(self, most: int, size: Callable[[V], int]) -> None:
        self._most, self._size = most, size
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self.held = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        self.held += self._size(value)
        while self.held > self._most and len(self._values) > 1:
            _, dropped = self._values.popitem(last=False)
            self.held -= self._size(dropped)
        return value
