"""Big files are cut into pieces that can be read apart: at lines, paragraphs, row groups or rows."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from distmeta.corpus.hub import load_dataset
from distmeta.corpus.json_rows import is_by_lines
from distmeta.corpus.kinds import HEAD, compression_of, marked_encoding
from distmeta.corpus.pieces import PIECE_BYTES, PIECE_ROWS, Piece
from distmeta.corpus.records import RecordSettings
from distmeta.corpus.streams import CHUNK, filesystem, read_head


def cut_into_pieces(file: Piece, settings: RecordSettings) -> list[Piece]:
    """Return the pieces of a file that can be read apart: whole lines (or paragraphs), row groups, or rows."""
    if file.format == "huggingface":
        rows = len(load_dataset(file.path, file.hub_config, file.hub_split))
        return [
            replace(file, start=start, end=min(start + PIECE_ROWS, rows), first_record=start + 1)
            for start in range(0, rows, PIECE_ROWS)
        ]
    if file.size <= PIECE_BYTES or file.format not in ("text", "jsonl", "parquet"):
        return [file]
    if file.format == "parquet":
        return _cut_by_row_groups(file)
    if not _can_be_cut(file, settings):
        return [file]
    paragraphs = settings.record == "paragraph"
    ends = [*_line_ends(file, paragraphs and file.format == "text"), file.size]
    return [replace(file, start=start, end=end) for start, end in zip([0, *ends], ends, strict=False) if start < end]


def _can_be_cut(file: Piece, settings: RecordSettings) -> bool:
    """Whether the lines of a file can be told without reading what is before them: plain UTF-8, and no list of JSON."""
    try:
        head = read_head(file.root, file.path, HEAD)
    except OSError:
        return False  # its reader will say what is wrong
    is_plain = compression_of(head, file.path) is None and marked_encoding(head) in (None, "utf-8")
    return (
        is_plain
        and file.encoding is None
        and b"\n" in head
        and (file.format == "text" or is_by_lines(head, settings.of_text(file.text_column).text_column))
    )


def _cut_by_row_groups(file: Piece) -> list[Piece]:
    try:
        metadata = pq.ParquetFile(filesystem(file.root).open_input_file(file.path)).metadata
    except (OSError, pa.ArrowException, ValueError):
        return [file]  # its reader will say what is wrong
    pieces, start, first_record, size, rows = [], 0, 1, 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        rows += metadata.row_group(group).num_rows
        if size >= PIECE_BYTES or group == metadata.num_row_groups - 1:
            pieces.append(replace(file, start=start, end=group + 1, first_record=first_record))
            start, first_record, size, rows = group + 1, first_record + rows, 0, 0
    return pieces


def _line_ends(file: Piece, paragraphs: bool) -> Iterator[int]:
    """Yield the places, about every PIECE_BYTES, where a line (or a paragraph) has ended."""
    boundary = re.compile(rb"\n[ \t\r]*\n" if paragraphs else rb"\n")
    with filesystem(file.root).open_input_file(file.path) as stream:
        position = PIECE_BYTES
        while position < file.size:
            stream.seek(position)
            window, offset = b"", position
            while chunk := stream.read(CHUNK):
                window = window[-1000:] + chunk
                if match := boundary.search(window):
                    position = offset + len(chunk) - len(window) + match.end()
                    yield position
                    break
                offset += len(chunk)
            else:
                return
            position += PIECE_BYTES
