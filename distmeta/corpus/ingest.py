"""First step: sources are hashed, read, cleaned and cut into sentences, and kept as shards of bounded size."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmeta.corpus.builtin import content_of
from distmeta.corpus.cut import cut_into_pieces
from distmeta.corpus.executor import Executor, map_groups
from distmeta.corpus.hub import is_saved_dataset, load_dataset
from distmeta.corpus.parts import Part, digest, file_digest, make_part, write_parquet
from distmeta.corpus.pieces import UNKNOWN, Piece
from distmeta.corpus.readers import read_piece
from distmeta.corpus.records import RecordSettings, Tally, clean_records
from distmeta.corpus.sentences import split_sentences
from distmeta.corpus.streams import filesystem, read_bytes
from distmeta.corpus.tables import write_sorted
from distmeta.corpus.windows import cut_into_windows
from distmeta.corpus.words import hash64, text_key

STEP = "records"
SHARD_BYTES = 4_000_000
UNIT_BYTES = 8_000_000

SCHEMA = pa.schema(
    {
        "document": pa.string(),  # <source name>:<record number>, and /<part> of a line that is read in parts
        "sentences": pa.list_(pa.string()),  # of a labelled row: its text and, where there is one, its second text
        "text_key": pa.uint64(),
        "label": pa.string(),
    }
)


@dataclass(frozen=True, slots=True)
class HashedPiece:
    """A piece, the hash of its content, and how many line breaks it has."""

    piece: Piece
    content: str
    line_breaks: int


@dataclass(frozen=True, slots=True)
class IngestUnit:
    """Pieces that are read together, since many small files would make many small shards."""

    step: Path
    pieces: tuple[HashedPiece, ...]
    settings: RecordSettings


def hash_sources(
    datasets: Sequence[tuple[Sequence[Piece], RecordSettings]], executor: Executor
) -> list[list[HashedPiece]]:
    """Return the pieces of all files of each data set, in order, with the hash of their content. Every byte is read."""
    groups = []
    for files, settings in datasets:
        pieces = [piece for file in files for piece in cut_into_pieces(file, settings)]
        groups.append(list(_grouped(pieces, [piece.text_bytes for piece in pieces], 8 * UNIT_BYTES)))
    hashed = map_groups(executor, _hash_pieces, groups, "corpus: hashing the sources")
    return [_with_line_numbers(chain.from_iterable(dataset)) for dataset in hashed]


def _with_line_numbers(hashed: Iterable[HashedPiece]) -> list[HashedPiece]:
    """Return the pieces with the number of their first line, which those before them of the same file tell."""
    result: list[HashedPiece] = []
    for _, ranges in groupby(hashed, key=lambda each: each.piece.name):
        lines = 0
        for each in ranges:
            if each.piece.format in ("text", "jsonl"):
                each = replace(each, piece=replace(each.piece, first_record=lines + 1))
                lines += each.line_breaks
            result.append(each)
    return result


def in_canonical_order(hashed: Sequence[HashedPiece]) -> list[HashedPiece]:
    """Return the pieces in the order of their files' names and content, whatever the order of the sources was.

    Files of the same name are told apart by `~2`, `~3` and so on behind it, in this order.
    """
    files = [list(pieces) for _, pieces in groupby(hashed, key=lambda each: each.piece.name)]
    named = sorted(
        (
            (
                _name_of_file(pieces[0].piece),
                [each.content for each in pieces],
                pieces[0].piece.text_column or "",
                pieces,
            )
            for pieces in files
        ),
        key=lambda file: file[:3],
    )
    result: list[HashedPiece] = []
    for name, group in groupby(named, key=lambda file: file[0]):
        for number, (*_, pieces) in enumerate(group, start=1):
            own = name if number == 1 else f"{name}~{number}"
            result += (replace(each, piece=replace(each.piece, name=own)) for each in pieces)
    return result


def _name_of_file(piece: Piece) -> str:
    """Return a piece's name without the number that it was given among files of the same name."""
    is_its_own = piece.path.endswith(piece.name)
    return piece.name if is_its_own else re.sub(r"~\d+$", "", piece.name)


def ingest(
    datasets: Sequence[tuple[Sequence[HashedPiece], RecordSettings]], work: Path, executor: Executor
) -> list[list[Part]]:
    """Read and clean all pieces of each data set into parts of the step `records`, in order.

    A part holds `00000.parquet`, ... (SCHEMA) and `00000.keys` (a sorted table for `repeats`) of each of its shards.
    Its summary has `shards`, a list of {records, bytes}, `pieces`, a list of tallies, and `windows`, how many of the
    sentences are windows of text without sentence ends.
    """
    groups = []
    for hashed, settings in datasets:
        sizes = [each.piece.text_bytes for each in hashed]
        groups.append([IngestUnit(work / STEP, group, settings) for group in _grouped(hashed, sizes, UNIT_BYTES)])
    return map_groups(executor, _ingest_unit, groups, "corpus: reading and cleaning")


def _grouped(items: Sequence[Any], sizes: Sequence[int], limit: int) -> Iterator[tuple[Any, ...]]:
    """Yield runs of neighbours that reach `limit` together."""
    group: list[Any] = []
    size = 0
    for item, item_size in zip(items, sizes, strict=True):
        group.append(item)
        size += item_size
        if size >= limit:
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)


def _hash_pieces(pieces: Sequence[Piece]) -> list[HashedPiece]:
    return [_hash_piece(piece) for piece in pieces]


def _hash_piece(piece: Piece) -> HashedPiece:
    if piece.format == "huggingface":
        return HashedPiece(piece, _hash_dataset(piece.path, piece.hub_config, piece.hub_split), 0)
    if piece.format == "builtin":
        return HashedPiece(piece, content_of(piece.path), 0)
    if piece.format == UNKNOWN:
        return HashedPiece(piece, digest([piece.size]), 0)
    start, end = _row_group_bytes(piece) if piece.format == "parquet" else (piece.start, piece.end)
    content = hashlib.blake2b(digest_size=16)
    line_breaks = 0
    try:
        for chunk in read_bytes(piece.root, piece.path, start, end):
            content.update(chunk)
            line_breaks += chunk.count(b"\n")
    except OSError as error:
        content.update(str(error).encode())  # its reader will say what is wrong
    return HashedPiece(piece, content.hexdigest(), line_breaks)


def _row_group_bytes(piece: Piece) -> tuple[int, int | None]:
    """Return the range of bytes that a piece's row groups take; the footer behind the last one belongs to it."""
    if piece.end is None:
        return 0, None
    metadata = pq.ParquetFile(filesystem(piece.root).open_input_file(piece.path)).metadata

    def start_of(group: int) -> int:
        columns = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
        return min(column.dictionary_page_offset or column.data_page_offset for column in columns)

    is_last = piece.end == metadata.num_row_groups
    return start_of(piece.start), None if is_last else start_of(piece.end)


@lru_cache(maxsize=4)
def _hash_dataset(path: str, config: str | None, split: str) -> str:
    dataset = load_dataset(path, config, split)
    if not is_saved_dataset(path):
        return str(dataset._fingerprint)  # names the downloaded files' content
    return " ".join(file_digest(Path(file["filename"])) for file in dataset.cache_files)


def _ingest_unit(unit: IngestUnit) -> Part:
    identity = [asdict(unit.settings), [[each.piece.identity(), each.content] for each in unit.pieces]]
    return make_part(unit.step, identity, lambda folder: _write_shards(unit, folder))


def _write_shards(unit: IngestUnit, folder: Path) -> dict[str, Any]:
    shards = _ShardWriter(folder)
    tallies, windows = [], 0
    for each in unit.pieces:
        tally = Tally()
        for record in clean_records(read_piece(each.piece, unit.settings, tally), unit.settings, tally):
            if unit.settings.label_column is not None:
                sentences = [record.text or ""] if record.pair is None else [record.text or "", record.pair]
            else:
                sentences, cut = _sentences(record.text or "", unit.settings)
                windows += cut
            document = f"{each.piece.name}:{record.number}" + (f"/{record.part}" if record.part else "")
            shards.add(document, sentences, record.text or "", record.pair, record.label)
        tallies.append(asdict(tally))
    shards.flush()
    return {"shards": shards.written, "pieces": tallies, "windows": windows}


def _sentences(text: str, settings: RecordSettings) -> tuple[list[str], int]:
    """Return the sentences of a text, and how many of them are windows."""
    if not settings.split_sentences:
        return [text], 0
    sentences = split_sentences(text)
    windows = [cut_into_windows(sentence, settings.max_sentence_words) for sentence in sentences]
    if sum(map(len, windows)) == len(sentences):
        return sentences, 0
    return [window for each in windows for window in each], sum(len(each) for each in windows if len(each) > 1)


class _ShardWriter:
    """Collects records and writes a shard whenever it holds SHARD_BYTES of text."""

    def __init__(self, folder: Path) -> None:
        self.written: list[dict[str, int]] = []
        self._folder = folder
        self._start()

    def _start(self) -> None:
        self._rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self._exact: list[int] = []
        self._labels: list[int] = []
        self._bytes = 0

    def add(self, document: str, sentences: list[str], text: str, pair: str | None, label: str | None) -> None:
        texts = (text,) if pair is None else (text, pair)
        for column, value in zip(SCHEMA.names, (document, sentences, text_key(*texts), label), strict=True):
            self._rows[column].append(value)
        self._exact.append(hash64("\0".join((*texts, label or ""))))
        self._labels.append(hash64(label) if label is not None else 0)
        self._bytes += sum(len(sentence.encode()) for sentence in sentences)
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._exact:
            return
        name = f"{len(self.written):05d}"
        table = pa.table(self._rows, schema=SCHEMA)
        write_parquet(table, self._folder / f"{name}.parquet")
        columns = {
            "key": table["text_key"].to_numpy(),
            "exact": np.array(self._exact, np.uint64),
            "label": np.array(self._labels, np.uint64),
            "row": np.arange(len(table), dtype=np.uint32),
        }
        write_sorted(columns, self._folder / f"{name}.keys")
        self.written.append({"records": len(table), "bytes": self._bytes})
        self._start()
