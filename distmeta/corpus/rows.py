"""The rows of a data set: where they stand, what became of each, and which repeat another."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from distmeta.corpus.config import CorpusConfig
from distmeta.corpus.datasets import Dataset
from distmeta.corpus.executor import Executor
from distmeta.corpus.ingest import STEP as RECORDS
from distmeta.corpus.ingest import HashedPiece, hash_sources, in_canonical_order, ingest
from distmeta.corpus.parts import Part, digest, save_list
from distmeta.corpus.records import LOSSES, RecordSettings, Tally
from distmeta.corpus.repeats import find_repeats
from distmeta.corpus.reports import RowCounts, SourceReport, report_source, vanished_classes
from distmeta.corpus.shards import Shard
from distmeta.corpus.sources import resolve_sources
from distmeta.errors import UserError


@dataclass(frozen=True, slots=True)
class FoundDataset:
    """A data set and the files that it is read from."""

    dataset: Dataset
    settings: RecordSettings
    skipped: Counter[str]
    """Files that are no data by their names, as `Resolved` counts them."""
    hashed: list[HashedPiece]
    """In the canonical order of `in_canonical_order`."""

    def identity(self) -> list[object]:
        """What determines its rows, but for the settings."""
        return [self.dataset.name, self.skipped, [[each.piece.identity(), each.content] for each in self.hashed]]

    def contents(self) -> Iterator[tuple[str, list[HashedPiece], str]]:
        """Yield each source's name, its pieces, and a hash of its content."""
        for name, group in groupby(self.hashed, key=lambda each: each.piece.name):
            pieces = list(group)
            contents = [each.content for each in pieces]
            yield name, pieces, contents[0] if len(contents) == 1 else digest(contents)


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """A data set whose rows are read and cleaned."""

    found: FoundDataset
    parts: list[Part]
    """As `ingest` returns them."""

    @property
    def tallies(self) -> list[Tally]:
        """What became of the rows of each piece."""
        return [Tally(**piece) for part in self.parts for piece in part.summary["pieces"]]

    @property
    def bytes(self) -> int:
        """Text of the rows."""
        return sum(shard["bytes"] for part in self.parts for shard in part.summary["shards"])

    def report(self) -> list[SourceReport]:
        """Return what became of every source."""
        reports, left = [], iter(self.tallies)
        for name, pieces, content in self.found.contents():
            first, own = pieces[0].piece, list(islice(left, len(pieces)))
            path = f"builtin:{first.path}" if first.format == "builtin" else first.path
            reports.append(report_source(name, path, first.size, content, own, self.found.dataset.name))
        return reports

    def vanished(self) -> list[str]:
        """Return the labels of dropped rows that no row is left of."""
        labels = {label for tally in self.tallies for label in tally.dropped_labels}
        return vanished_classes(labels, [part.folder / name for part in self.parts for name in _shards(part)])

    def count(self, repeats: int) -> RowCounts:
        """Return what became of the rows, of which `repeats` are dropped as repeated."""
        dropped = Counter[str]({"repeat": repeats} if repeats else {})
        for tally in self.tallies:
            dropped.update(tally.dropped)
        kept = sum(tally.kept for tally in self.tallies) - repeats
        read = sum(tally.read for tally in self.tallies)
        return RowCounts(read=read, kept=kept, dropped=dict(sorted(dropped.items())))

    def keys(self) -> tuple[list[Path], int]:
        """Return the tables of the rows' hashes, and how many rows there are."""
        tables = [part.folder / name for part in self.parts for name in _shards(part, ".keys")]
        return tables, sum(shard["records"] for part in self.parts for shard in part.summary["shards"])

    def shards(self, repeats: Sequence[Part] | None, work: Path) -> list[Shard]:
        """Return the rows as shards, without those that `repeats` says; None: with all."""
        listing = None if repeats is None else save_list(work / "lists", [f"repeats/{part.key}" for part in repeats])
        files = [f"{RECORDS}/{part.key}/{name}" for part in self.parts for name in _shards(part)]
        return [Shard(work, number, file, listing) for number, file in enumerate(files)]


def _shards(part: Part, ending: str = ".parquet") -> list[str]:
    return [f"{number:05d}{ending}" for number in range(len(part.summary["shards"]))]


def find_rows(
    datasets: Sequence[Dataset], corpus: CorpusConfig, directory: Path, executor: Executor
) -> list[FoundDataset]:
    """Find and hash the files of every data set. Raises UserError for a source that there is nothing to read of."""
    resolved = [resolve_sources(dataset.sources, directory) for dataset in datasets]
    settings = [
        RecordSettings(
            record=corpus.record,
            normalize=corpus.normalize,
            split_sentences=corpus.split_sentences,
            max_sentence_words=corpus.max_sentence_words,
            max_record_bytes=corpus.max_record_bytes,
            text_column=dataset.text_column,
            pair_column=dataset.pair_column,
            label_column=dataset.label_column,
        )
        for dataset in datasets
    ]
    files = [(each.files, own) for each, own in zip(resolved, settings, strict=True)]
    return [
        FoundDataset(dataset, own, each.skipped, in_canonical_order(hashed))
        for dataset, own, each, hashed in zip(datasets, settings, resolved, hash_sources(files, executor), strict=True)
    ]


def read_rows(found: Sequence[FoundDataset], work: Path, executor: Executor) -> list[DatasetRows]:
    """Read and clean the rows of every data set."""
    parts = ingest([(each.hashed, each.settings) for each in found], work, executor)
    return [DatasetRows(each, own) for each, own in zip(found, parts, strict=True)]


def find_repeated_rows(datasets: Sequence[DatasetRows], work: Path, executor: Executor) -> list[list[Part]]:
    """Find the rows of each data set that repeat an earlier one of it; see `find_repeats`."""
    return find_repeats(work / "repeats", [rows.keys() for rows in datasets], executor, "corpus: comparing rows")


def require_rows(rows: DatasetRows) -> None:
    """Raise UserError where not one row of a data set can be used, with what was wrong with them."""
    sources = rows.report()
    if any(source.records > sum(source.dropped.values()) for source in sources):
        return
    told = [line for source in sources if (line := source.loss()) is not None]
    told += [f"{source.path}: {note}" for source in sources for note in source.notes]
    told += [
        f"{source.path}: {count} rows dropped: {reason} ({source.places[reason][0]})"
        for source in sources
        for reason, count in source.dropped.items()
        if reason not in LOSSES
    ]
    more = f"; and {len(told) - 10} more" if len(told) > 10 else ""
    name = rows.found.dataset.name
    raise UserError(
        f"corpus.sources: {name + ': ' if name else ''}not one row can be used: " + "; ".join(told[:10]) + more
    )
