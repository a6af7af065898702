"""The first pass over a corpus for its class index: what examples there are, and how many each possible class has."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from distmeta.corpus.boundaries import find_words
from distmeta.corpus.executor import Executor, map_groups
from distmeta.corpus.parts import Part, load_list, make_part, read_parquet, save_list, write_parquet
from distmeta.corpus.repeats import repeated_rows
from distmeta.corpus.segments import int_lists
from distmeta.corpus.shards import Shard
from distmeta.corpus.tables import bucket_ranges, read_range, write_sorted
from distmeta.corpus.words import hash64, overlap_keys, text_key

NAMES_PER_UNIT = 500_000
ANY = 1 << 62
"""More examples than any class has."""
EXAMPLES, NAMES, KEYS, COUNTS = "examples.parquet", "names.parquet", "examples.keys", "counts.arrow"


@dataclass(frozen=True, slots=True)
class ExamplesUnit:
    """One shard in which to find examples."""

    shard: Shard
    labelled: bool
    min_words: int
    stop_words: str | None

    def identity(self) -> list[object]:
        """What determines the result."""
        return [self.shard.identity(), self.labelled, self.min_words, self.stop_words]


def find_examples(
    datasets: Sequence[tuple[Sequence[Shard], bool]],
    min_words: int,
    stop_words: frozenset[str] | None,
    work: Path,
    executor: Executor,
) -> list[list[Part]]:
    """Find the examples of every shard of each data set: of a labelled one its rows, of text the sentences of at least
    `min_words` words.

    A part holds `examples.parquet`: `row`, `texts` (one or two), `text_key`, `OVERLAP_KEYS`, and `classes` (numbers
    into `names.parquet` with `name` and `hash`: the label, or the words of the sentence), and `examples.keys` for
    `repeats`. Its summary has `examples`, `names`, and `left_out`, how many stretches count as words and are no
    classes, by script.
    """
    stop_list = None if stop_words is None else save_list(work / "lists", sorted(stop_words))
    groups = [
        [ExamplesUnit(shard, labelled, min_words, stop_list) for shard in shards] for shards, labelled in datasets
    ]
    return map_groups(executor, _find_in_shard, groups, "classes: finding examples")


def _find_in_shard(unit: ExamplesUnit) -> Part:
    return make_part(unit.shard.work / "examples", unit.identity(), lambda folder: _write_examples(unit, folder))


class _Example(NamedTuple):
    row: str
    texts: list[str]
    key: int
    classes: Iterable[str]


def _labelled_rows(records: pa.Table) -> Iterator[_Example]:
    columns = (records[name].to_pylist() for name in ("document", "sentences", "text_key", "label"))
    for document, texts, key, label in zip(*columns, strict=True):
        yield _Example(document, texts, key, (label,))


def _sentences_with_words(
    records: pa.Table, min_words: int, stop_words: frozenset[str], left_out: Counter[str]
) -> Iterator[_Example]:
    for document, sentences in zip(records["document"].to_pylist(), records["sentences"].to_pylist(), strict=True):
        for number, sentence in enumerate(sentences):
            words, others = find_words(sentence)
            if len(words) + len(others) >= min_words:
                left_out.update(others)
                classes = dict.fromkeys(words)
                for word in stop_words & classes.keys():
                    del classes[word]
                yield _Example(f"{document}.{number}", [sentence], text_key(sentence), classes)


def _write_examples(unit: ExamplesUnit, folder: Path) -> dict[str, Any]:
    records = unit.shard.read()
    stop_words = load_list(unit.shard.work / "lists", unit.stop_words) if unit.stop_words else []
    left_out = Counter[str]()
    found = (
        _labelled_rows(records)
        if unit.labelled
        else _sentences_with_words(records, unit.min_words, frozenset(stop_words), left_out)
    )
    rows, texts, keys, classes = [], [], [], []
    numbers: dict[str, int] = {}
    for example in found:
        rows.append(example.row)
        texts.append(example.texts)
        keys.append(example.key)
        classes.append([numbers.setdefault(name, len(numbers)) for name in example.classes])
    hashes = np.array([hash64(name) for name in numbers], np.uint64)
    text_keys = np.array(keys, np.uint64)
    columns = {
        "row": pa.array(rows, pa.string()),
        "texts": pa.array(texts, pa.list_(pa.string())),
        "text_key": pa.array(text_keys),
        **overlap_keys(texts),
        "classes": int_lists(classes),
    }
    write_parquet(pa.table(columns), folder / EXAMPLES)
    write_parquet(pa.table({"name": pa.array(list(numbers), pa.string()), "hash": hashes}), folder / NAMES)
    # One text may stand under two labels; under one label, or as an unlabelled sentence, it is one example.
    same = mix(text_keys, hashes[[each[0] for each in classes]]) if unit.labelled and classes else text_keys
    write_sorted({"key": same, "row": np.arange(len(rows), dtype=np.uint32)}, folder / KEYS)
    return {"examples": len(rows), "names": len(numbers), "left_out": left_out}


def mix(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return 64-bit hashes of pairs of 64-bit hashes (the finalizer of SplitMix64)."""
    mixed = left * np.uint64(0x9E3779B97F4A7C15) + right
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: np.ndarray = mixed ^ (mixed >> np.uint64(31))
    return result


@dataclass(frozen=True, slots=True)
class DistinctExamples:
    """The examples of one shard without those whose text an earlier one has."""

    work: Path
    number: int
    part: str
    """The part with the examples, below `work`."""
    repeats: str
    """The list of the parts that say which examples repeat an earlier one."""

    def kept(self, rows: int) -> np.ndarray:
        """Return which of the part's rows are kept, as truth values."""
        kept = np.ones(rows, bool)
        kept[
            repeated_rows([self.work / part for part in load_list(self.work / "lists", self.repeats)], self.number)
        ] = False
        return kept

    def identity(self) -> list[object]:
        """What determines the examples that are kept."""
        repeats = repeated_rows(
            [self.work / part for part in load_list(self.work / "lists", self.repeats)], self.number
        )
        return [self.part, repeats.tolist()]


def count_classes(datasets: Sequence[Sequence[DistinctExamples]], executor: Executor) -> list[list[Part]]:
    """Count the distinct examples of every possible class of each data set, shard by shard.

    A part holds a sorted table with the class name's hash (`key`), `count` and `name`; its summary `examples` and
    `names`.
    """
    return map_groups(executor, _count_in_shard, datasets, "classes: counting")


def _count_in_shard(examples: DistinctExamples) -> Part:
    return make_part(examples.work / "counts", examples.identity(), lambda folder: _write_counts(examples, folder))


def _write_counts(examples: DistinctExamples, folder: Path) -> dict[str, Any]:
    classes = read_parquet(examples.work / examples.part / EXAMPLES, ["classes"])["classes"].combine_chunks()
    names = read_parquet(examples.work / examples.part / NAMES)
    kept = examples.kept(len(classes))
    lengths = classes.value_lengths().to_numpy(zero_copy_only=False)
    counts = np.bincount(classes.flatten().to_numpy()[np.repeat(kept, lengths)], minlength=len(names))
    present = np.flatnonzero(counts)
    columns = {
        "key": names["hash"].to_numpy()[present],
        "count": counts[present],
        "name": names["name"].combine_chunks().take(pa.array(present)),
    }
    write_sorted(columns, folder / COUNTS)
    return {"examples": int(kept.sum()), "names": len(present)}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which possible classes of a data set are wanted, of those counted in its shards."""

    counted: Sequence[Part]
    fewest: int = 1
    """Distinct examples."""
    most: int = ANY
    keep: int | None = None
    """Of more classes than these the ones with the smallest hashes are kept."""


@dataclass(frozen=True, slots=True)
class MergeUnit:
    """A range of class hashes over the counts of all shards."""

    work: Path
    counts: str
    low: int
    high: int
    fewest: int
    most: int
    keep: int | None


def merge_counts(datasets: Sequence[Wanted], work: Path, executor: Executor) -> list[pa.Table]:
    """Return `name`, `key` (its hash) and `count` of the classes wanted of each data set, by hash."""
    groups = []
    for wanted in datasets:
        listing = save_list(work / "lists", [part.key for part in wanted.counted])
        ranges = bucket_ranges(sum(part.summary["names"] for part in wanted.counted), NAMES_PER_UNIT)
        limits = (wanted.fewest, wanted.most, wanted.keep)
        groups.append([MergeUnit(work, listing, low, high, *limits) for low, high in ranges])
    merged = map_groups(executor, _merge_range, groups, "classes: merging counts")
    return [
        pa.concat_tables(read_range(part.folder / COUNTS, 0, 1 << 64) for part in parts)[: wanted.keep]
        for wanted, parts in zip(datasets, merged, strict=True)
    ]


def _merge_range(unit: MergeUnit) -> Part:
    identity = [unit.counts, str(unit.low), str(unit.high), unit.fewest, unit.most, unit.keep]
    return make_part(unit.work / "merged-counts", identity, lambda folder: _write_merged(unit, folder))


def _write_merged(unit: MergeUnit, folder: Path) -> dict[str, Any]:
    parts = load_list(unit.work / "lists", unit.counts)
    rows = pa.concat_tables(read_range(unit.work / "counts" / key / COUNTS, unit.low, unit.high) for key in parts)
    keys, first, inverse = np.unique(rows["key"].to_numpy(), return_index=True, return_inverse=True)
    counts = np.bincount(inverse, rows["count"].to_numpy()).astype(np.int64)
    chosen = np.flatnonzero((counts >= unit.fewest) & (counts <= unit.most))[: unit.keep]
    names = rows["name"].combine_chunks().take(pa.array(first[chosen]))
    write_sorted({"key": keys[chosen], "count": counts[chosen], "name": names}, folder / COUNTS)
    return {}
