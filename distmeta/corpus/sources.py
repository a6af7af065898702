"""Sources: which files the configuration means."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.fs

from distmeta.corpus.builtin import DOCS, SIZES
from distmeta.corpus.config import BUILTINS, CorpusConfig, SourceConfig
from distmeta.corpus.hub import is_saved_dataset, load_dataset
from distmeta.corpus.kinds import COMPRESSIONS
from distmeta.corpus.pieces import UNKNOWN, Piece
from distmeta.corpus.readers import describe_unknown
from distmeta.corpus.streams import filesystem
from distmeta.errors import UserError, first_line

FORMATS = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
HUB = "huggingface:"
MARKS = [("config.yaml", "environment.json"), ("manifest.json", "tokenizer/tokenizer.json")]
"""Files by which the folder of a run and that of a prepared corpus are known."""
HIDDEN, BACKUP = "hidden", "backup"
_BACKUP = re.compile(
    r"(.*(~|\.(bak|backup|old|orig|rej|save|swp|swo|tmp|temp|part|crdownload)|\.~\d+~)"
    r"|#.*#|~\$.*|.* \(conflicted copy.*)$",
    re.IGNORECASE,
)
"""Names of what editors, and programs that write or load, leave beside a file."""
_NO_DATA_NAME = re.compile(
    r"(readme|licen[sc]e|copying|notice|authors|changelog|changes|citation|contributing|makefile|dockerfile)(\.\w+)?"
    r"|_[^.]*|dataset_infos?\.json",
    re.IGNORECASE,
)
_NO_DATA_ENDING = re.compile(
    r"\.(py|ipynb|sh|bat|r|c|h|cpp|java|js|css|lock|ya?ml|toml|cfg|ini|bib|cff"
    r"|png|jpe?g|gif|svg|ico|md5|sha\d+|sha\d+sum|crc|sig|asc)",
    re.IGNORECASE,
)
"""What stands beside data and is none: words about it, code, settings, pictures, checksums."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The files behind the sources, in order, each as one piece, and how many were skipped.

    What is skipped is no data, by its name: HIDDEN files, BACKUP files of editors, and others by their name or ending.
    A file that could be data, and whose ending no reader knows, is a piece of the format UNKNOWN.
    """

    files: list[Piece]
    skipped: Counter[str]


def resolve_sources(sources: Iterable[str | SourceConfig], directory: Path | None = None) -> Resolved:
    """Find the files of every source but what was made from them: `directory`, other corpora, and runs.

    Raises UserError for a source behind which there is nothing that can be read.
    """
    files: list[Piece] = []
    skipped = Counter[str]()
    names = Counter[str]()
    for entry in sources:
        source = SourceConfig(path=entry) if isinstance(entry, str) else entry
        found, others = _resolve(source, directory)
        skipped.update(others)
        if all(file.format == UNKNOWN for file in found):
            raise UserError(f"corpus.sources: {source.path}: {_describe_nothing(found, others)}")
        _refuse_idle_settings(source, found)
        for file in found:
            names[file.name] += 1
            count = names[file.name]
            name = file.name if count == 1 else f"{file.name}~{count}"
            files.append(replace(file, name=name, text_column=source.text_column))
    return Resolved(files, skipped)


def total_bytes(corpus: CorpusConfig) -> int:
    """Return the stored size of all sources in bytes, from their names alone."""
    return sum(file.size for file in resolve_sources(corpus.sources).files if file.format != UNKNOWN)


def _resolve(source: SourceConfig, directory: Path | None) -> tuple[list[Piece], Counter[str]]:
    if source.path in BUILTINS:
        name = source.path.removeprefix("builtin:")
        return [Piece(name, "", name, "builtin", SIZES[name])], Counter()
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
    except Exception as error:  # whatever a storage or a hub may raise
        raise UserError(f"corpus.sources: {source.path}: cannot be reached: {first_line(error)}") from error
    columns = tuple(source.columns) if source.columns else None
    files: list[Piece] = []
    skipped = Counter[str]()
    for relative, info, is_asked_for in sorted(matches, key=lambda match: match[0]):
        path = PurePosixPath(info.path)
        suffix = _suffix(path)
        format = FORMATS.get(suffix, UNKNOWN) if source.format == "auto" else source.format
        if not is_asked_for and (reason := _no_data(relative, source.format == "auto")):
            skipped[reason] += 1
        elif info.type != pa.fs.FileType.File:
            files.append(Piece(relative, source.path, info.path, UNKNOWN, 0))
        else:
            files.append(Piece(relative, source.path, info.path, format, info.size, source.encoding, columns=columns))
    return files, skipped


def _suffix(path: PurePosixPath) -> str:
    """Return the ending that says how a file is read: the one before that of its compression."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix in COMPRESSIONS else suffix


def _no_data(name: str, by_ending: bool) -> str | None:
    """Return as what a file in a folder is skipped by its name, below that folder; None for what could be data."""
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return HIDDEN
    if _BACKUP.fullmatch(path.name):
        return BACKUP
    if by_ending and _NO_DATA_NAME.fullmatch(path.name):
        return path.name
    return path.suffix if by_ending and _NO_DATA_ENDING.fullmatch(path.suffix) else None


def _refuse_idle_settings(source: SourceConfig, found: Sequence[Piece]) -> None:
    """Refuse settings of a source that none of its files takes, since they would be passed over without a word."""
    formats = {file.format for file in found}
    idle = {
        "columns": source.columns and not formats & {"csv", "tsv"},
        "encoding": source.encoding and not formats & {"text", "jsonl", "csv", "tsv"},
        "config": source.config and "huggingface" not in formats,
        "split": source.split != "train" and "huggingface" not in formats,
        "text_column": source.text_column and not any(map(_has_columns, found)),
    }
    for key, is_idle in idle.items():
        if is_idle:
            raise UserError(
                f"corpus.sources: {source.path}: `{key}` says nothing of what is there ({', '.join(sorted(formats))}): "
                "leave it out"
            )


def _has_columns(file: Piece) -> bool:
    return file.format not in ("text", UNKNOWN) and (file.format, file.path) != ("builtin", DOCS)


def _find(path: str, directory: Path | None) -> Iterator[tuple[str, pa.fs.FileInfo, bool]]:
    """Yield (name below the source's fixed part, file, whether it is named itself) of all that a path or a glob means.

    What distmeta has made in folders is none of it.
    """
    files = filesystem(path)
    inner = pa.fs.FileSystem.from_uri(path)[1] if "://" in path else path
    info = files.get_file_info(inner)
    if info.type == pa.fs.FileType.File:
        yield PurePosixPath(inner).name, info, True
        return
    if (wildcard := re.search(r"[*?\[]", inner)) and info.type == pa.fs.FileType.NotFound:
        fixed, slash, _ = inner[: wildcard.start()].rpartition("/")
        base, pattern = fixed or slash or ".", inner[len(fixed + slash) :].split("/")
    else:
        base, pattern = inner.rstrip("/"), ["**"]
    selector = pa.fs.FileSelector(base, recursive=True, allow_not_found=True)
    found = files.get_file_info(selector)
    below = {info.path[len(base) :].lstrip("/"): info for info in found if info.type != pa.fs.FileType.Directory}
    if "://" not in path:  # pyarrow passes over links to nothing
        below |= {link[len(base) :].lstrip("/"): pa.fs.FileInfo(link) for link in _broken_links(base)}
    made = tuple(_made_by_distmeta(below))
    place, own = f"{Path(base).resolve()}/", f"{directory.resolve()}/" if directory else None
    for name, info in below.items():
        is_made = name.startswith(made) or (own and "://" not in path and (place + name).startswith(own))
        if not is_made and _matches(name.split("/"), pattern):
            yield name, info, False


def _broken_links(base: str) -> Iterator[str]:
    for folder, _, names in os.walk(base):
        for name in names:
            place = os.path.join(folder, name)
            if os.path.islink(place) and not os.path.exists(place):
                yield place


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


def _describe_nothing(found: Sequence[Piece], skipped: Counter[str]) -> str:
    """Say why a source gives nothing that can be read: of what it seems to be, the first file is an example."""
    if not found:
        return "no file was found that can be read" + (f"; skipped as no data: {_counts(skipped)}" if skipped else "")
    try:
        what = describe_unknown(found[0])
    except OSError as error:
        what = str(error)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"no file was found that can be read; {found[0].name}{more}: {what}"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(counter.items()))
