"""Sources: which files the configuration means, and the pieces in which they are read."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from distmeta.corpus.config import BUILTIN, CorpusConfig, SourceConfig
from distmeta.corpus.hub import is_saved_dataset, load_dataset
from distmeta.corpus.streams import CHUNK, filesystem
from distmeta.errors import UserError

FORMATS = {".txt": "text", ".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
PIECE_BYTES = 16_000_000
PIECE_ROWS = 50_000
HUB = "huggingface:"
MARKS = [("config.yaml", "environment.json"), ("manifest.json", "tokenizer/tokenizer.json")]
"""Files by which the folder of a run and that of a prepared corpus are known."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one reader reads: a file, or a range of one that can be cut.

    `start` and `end` are bytes of text and JSON lines, row groups of Parquet, and rows of a Hugging Face dataset; `end`
    is None for all of a file.
    """

    name: str
    """The source's name in rows and messages: the same wherever its folder lies."""
    root: str
    """What the file system is found by."""
    path: str
    format: str
    size: int
    """Bytes of the whole file as it is stored; 0 where they are not known."""
    gzip: bool = False
    start: int = 0
    end: int | None = None
    first_record: int = 1
    columns: tuple[str, ...] | None = None
    hub_config: str | None = None
    hub_split: str = "train"

    @property
    def text_bytes(self) -> int:
        """About how many bytes of text there are to read."""
        if self.end is not None:
            return min(self.size, PIECE_BYTES)
        return self.size * (3 if self.gzip else 1)

    def identity(self) -> dict[str, Any]:
        """All but the place where it lies."""
        return {key: value for key, value in asdict(self).items() if key not in ("root", "path", "size")}


@dataclass(frozen=True, slots=True)
class Resolved:
    """The files behind the sources, in order, each as one piece, and how many were skipped by their names' ending."""

    files: list[Piece]
    skipped: Counter[str]


def resolve_sources(corpus: CorpusConfig, directory: Path | None = None) -> Resolved:
    """Find the files of every source but what was made from them: `directory`, other corpora, and runs.

    Raises UserError for a source behind which there is nothing that can be read.
    """
    files: list[Piece] = []
    skipped = Counter[str]()
    names = Counter[str]()
    for entry in corpus.sources:
        source = SourceConfig(path=entry) if isinstance(entry, str) else entry
        found, others = _resolve(source, directory)
        skipped.update(others)
        if not found:
            hint = (
                f"; skipped {_counts(others)}: give their format, as in {{path: ..., format: text}}" if others else ""
            )
            raise UserError(f"corpus.sources: {source.path}: no file was found that can be read{hint}")
        for file in found:
            names[file.name] += 1
            count = names[file.name]
            files.append(file if count == 1 else replace(file, name=f"{file.name}~{count}"))
    return Resolved(files, skipped)


def total_bytes(corpus: CorpusConfig) -> int:
    """Return the stored size of all sources in bytes, from their names alone."""
    return sum(file.size for file in resolve_sources(corpus).files)


def cut_into_pieces(file: Piece, paragraphs: bool) -> list[Piece]:
    """Return the pieces of a file that can be read apart: whole lines (or paragraphs), row groups, or rows."""
    if file.format == "huggingface":
        rows = len(load_dataset(file.path, file.hub_config, file.hub_split))
        return [
            replace(file, start=start, end=min(start + PIECE_ROWS, rows), first_record=start + 1)
            for start in range(0, rows, PIECE_ROWS)
        ]
    if file.size <= PIECE_BYTES or file.gzip or file.format not in ("text", "jsonl", "parquet"):
        return [file]
    if file.format == "parquet":
        return _cut_by_row_groups(file)
    ends = [*_line_ends(file, paragraphs and file.format == "text"), file.size]
    return [replace(file, start=start, end=end) for start, end in zip([0, *ends], ends, strict=False) if start < end]


def _resolve(source: SourceConfig, directory: Path | None) -> tuple[list[Piece], Counter[str]]:
    if source.path == BUILTIN:
        return [Piece("python-docs", "", "", "builtin", 465_000)], Counter()
    name = source.path.removeprefix(HUB)
    if source.format == "huggingface" or source.path.startswith(HUB) or is_saved_dataset(name):
        dataset = load_dataset(name, source.config, source.split)
        label = PurePosixPath(name).name
        piece = Piece(
            label, "", name, "huggingface", dataset.data.nbytes, hub_config=source.config, hub_split=source.split
        )
        return [piece], Counter()
    try:
        matches = list(_find(source.path, directory))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"corpus.sources: {source.path}: cannot be reached: {error}") from error
    files: list[Piece] = []
    skipped = Counter[str]()
    for relative, info in sorted(matches, key=lambda match: match[0]):
        path = PurePosixPath(info.path)
        gzip = path.suffix == ".gz"
        suffix = path.with_suffix("").suffix if gzip else path.suffix
        format = FORMATS.get(suffix.lower()) if source.format == "auto" else source.format
        if format is None:
            skipped[suffix or "(no ending)"] += 1
            continue
        columns = tuple(source.columns) if source.columns else None
        files.append(Piece(relative, source.path, info.path, format, info.size, gzip=gzip, columns=columns))
    return files, skipped


def _find(path: str, directory: Path | None) -> Iterator[tuple[str, pa.fs.FileInfo]]:
    """Yield (name below the source's fixed part, file) of every file that a path, a folder or a glob means.

    In folders, hidden files and what distmeta has made there are none of it.
    """
    files = filesystem(path)
    inner = pa.fs.FileSystem.from_uri(path)[1] if "://" in path else path
    info = files.get_file_info(inner)
    if info.type == pa.fs.FileType.File:
        yield PurePosixPath(inner).name, info
        return
    if (wildcard := re.search(r"[*?\[]", inner)) and info.type == pa.fs.FileType.NotFound:
        fixed, slash, _ = inner[: wildcard.start()].rpartition("/")
        base, pattern = fixed or slash or ".", inner[len(fixed + slash) :].split("/")
    else:
        base, pattern = inner.rstrip("/"), ["**"]
    selector = pa.fs.FileSelector(base, recursive=True, allow_not_found=True)
    below = {info.path[len(base) :].lstrip("/"): info for info in files.get_file_info(selector) if info.is_file}
    made = tuple(_made_by_distmeta(below))
    place, own = f"{Path(base).resolve()}/", f"{directory.resolve()}/" if directory else None
    for name, info in below.items():
        is_hidden = name.startswith(".") or "/." in name
        is_made = name.startswith(made) or (own and "://" not in path and (place + name).startswith(own))
        if not is_hidden and not is_made and _matches(name.split("/"), pattern):
            yield name, info


def _made_by_distmeta(names: Collection[str]) -> Iterator[str]:
    """Yield the folders, each with a slash at its end, that are runs or prepared corpora."""
    for name in names:
        for mark, beside in MARKS:
            folder = name.removesuffix(mark)
            if name.endswith(f"/{mark}") and folder + beside in names:
                yield folder


def _matches(path: Sequence[str], glob: Sequence[str]) -> bool:
    """Whether a glob means a path: ** is any number of folders, all else stays within one."""
    if not glob:
        return not path
    if glob[0] == "**":
        return len(glob) == 1 or any(_matches(path[skipped:], glob[1:]) for skipped in range(len(path)))
    return bool(path) and fnmatchcase(path[0], glob[0]) and _matches(path[1:], glob[1:])


def _cut_by_row_groups(file: Piece) -> list[Piece]:
    try:
        metadata = pq.ParquetFile(filesystem(file.root).open_input_file(file.path)).metadata
    except (OSError, pa.ArrowException):
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


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(counter.items()))
