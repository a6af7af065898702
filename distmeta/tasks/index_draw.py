"""The second pass: a bounded sample of every class's examples, brought together and encoded, class by class.

An example stays for a class when the hash of the two is small, so the sample is the same for any number of shards and
workers, and is bounded before anything crosses the network: the k smallest hashes of a class with n examples lie, but
for a chance below 1e-6, under (k + 6 sqrt(k) + 6) / n of the hash space.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distmeta.corpus.encoder import Encoder, load_encoder
from distmeta.corpus.executor import Executor, map_groups
from distmeta.corpus.parts import (
    Part,
    digest,
    file_digest,
    load_list,
    make_part,
    read_parquet,
    save_list,
)
from distmeta.corpus.segments import int_lists
from distmeta.corpus.tables import KEY_SPACE, read_range, write_sorted
from distmeta.corpus.words import OVERLAP_KEYS, StopWords
from distmeta.tasks.class_shards import write_class_shard
from distmeta.tasks.config import Split
from distmeta.tasks.index_examples import EXAMPLES, NAMES, DistinctExamples, mix
from distmeta.tasks.smlmt import encode_masked, split_at_word

EXAMPLES_PER_PART = 30_000
CLASSES_PER_PART = 64
"""A draw opens the files of its classes, which takes the longer the more classes each has."""
DRAWN, TABLE = "drawn.arrow", "classes.parquet"


@dataclass(frozen=True, slots=True)
class ChosenClass:
    """A class that tasks are made of."""

    name: str
    hash: int
    """The 64-bit hash of the name."""
    count: int
    """Distinct examples in the corpus."""
    split: Split


@dataclass(frozen=True, slots=True)
class DrawUnit:
    """One shard from which to draw the classes' examples."""

    examples: DistinctExamples
    chosen: str


@dataclass(frozen=True, slots=True)
class GatherUnit:
    """Classes, by their range of numbers, whose examples are brought together in one part."""

    work: Path
    drawn: str
    low: int
    classes: tuple[str, ...]
    labelled: bool
    max_examples: int
    tokenizer: Path
    tokenizer_hash: str
    max_length: int
    stop_words: str | None


def draw_examples(
    datasets: Sequence[tuple[Sequence[ChosenClass], Sequence[DistinctExamples]]],
    max_examples: int,
    work: Path,
    executor: Executor,
) -> list[list[Part]]:
    """Draw from every shard of each data set the examples that can be among a class's `max_examples` smallest hashes.

    A part holds a table sorted by the class's place in `classes` (`key`), with `priority`, `row`, `texts`, `text_key`
    and `OVERLAP_KEYS`.
    """
    groups: list[list[DrawUnit]] = []
    for classes, examples in datasets:
        chosen = f"chosen-{digest([max_examples, [[each.name, each.count] for each in classes]])}.arrow"
        _write_chosen(classes, max_examples, work / "lists" / chosen)
        groups.append([DrawUnit(each, chosen) for each in examples if classes])
    return map_groups(executor, _draw_from_shard, groups, "classes: drawing examples")


def _write_chosen(classes: Sequence[ChosenClass], max_examples: int, path: Path) -> None:
    enough = max_examples + 6 * math.sqrt(max_examples) + 6
    limits = [min(KEY_SPACE - 1, int(KEY_SPACE * enough / each.count)) for each in classes]
    columns = {
        "key": np.array([each.hash for each in classes], np.uint64),
        "number": np.arange(len(classes), dtype=np.uint64),
        "limit": np.array(limits, np.uint64),
    }
    write_sorted(columns, path)


def _draw_from_shard(unit: DrawUnit) -> Part:
    identity = [unit.examples.identity(), unit.chosen]
    return make_part(unit.examples.work / "drawn", identity, lambda folder: _write_drawn(unit, folder))


def _write_drawn(unit: DrawUnit, folder: Path) -> dict[str, Any]:
    source = unit.examples.work / unit.examples.part
    examples = read_parquet(source / EXAMPLES)
    hashes = read_parquet(source / NAMES)["hash"].to_numpy()
    chosen = read_range(unit.examples.work / "lists" / unit.chosen, 0, KEY_SPACE)
    chosen_hashes = chosen["key"].to_numpy()
    found = np.isin(hashes, chosen_hashes)
    place = np.searchsorted(chosen_hashes, hashes)

    classes = examples["classes"].combine_chunks()
    lengths = classes.value_lengths().to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(examples)), lengths)
    names = classes.flatten().to_numpy()
    possible = np.flatnonzero(found[names] & unit.examples.kept(len(examples))[rows])
    rows, names = rows[possible], names[possible]
    priority = mix(examples["text_key"].to_numpy()[rows], hashes[names])
    drawn = np.flatnonzero(priority <= chosen["limit"].to_numpy()[place[names]])
    rows, names, priority = rows[drawn], names[drawn], priority[drawn]
    taken = examples.select(["row", "texts", "text_key", *OVERLAP_KEYS]).take(pa.array(rows))
    columns = {"key": chosen["number"].to_numpy()[place[names]], "priority": priority}
    write_sorted(columns | {name: taken[name] for name in taken.column_names}, folder / DRAWN)
    return {"drawn": len(rows)}


@dataclass(frozen=True, slots=True)
class Gathered:
    """What is brought together of one data set."""

    classes: Sequence[ChosenClass]
    labelled: bool
    drawn: Sequence[Part]
    """As `draw_examples` returns them."""


def gather_classes(
    datasets: Sequence[Gathered],
    *,
    max_examples: int,
    tokenizer: Part,
    max_length: int,
    stop_words: frozenset[str] | None,
    work: Path,
    executor: Executor,
) -> list[list[tuple[Split, Part]]]:
    """Bring together and encode the examples of each class; return (split, part) in the order of the classes.

    A part holds whole classes of one split: `classes.parquet` with `class`, `row`, `text`, `pair` (null where there is
    no second text), `text_key`, the `OVERLAP_KEYS` of what the text was, `input_ids` and `mask_position`, sorted by
    class and priority, as `write_class_shard` writes it. Its summary has `classes`, `examples`, `cut` and `digest`.
    """
    lists = work / "lists"
    stop_list = None if stop_words is None else save_list(lists, sorted(stop_words))
    ranges = [_groups(dataset.classes, max_examples) for dataset in datasets]
    units = []
    for dataset, own in zip(datasets, ranges, strict=True):
        listing = save_list(lists, [part.key for part in dataset.drawn])
        units.append(
            [
                GatherUnit(
                    work,
                    listing,
                    low,
                    tuple(each.name for each in dataset.classes[low:high]),
                    dataset.labelled,
                    max_examples,
                    tokenizer.folder,
                    tokenizer.summary["hash"],
                    max_length,
                    stop_list,
                )
                for low, high in own
            ]
        )
    gathered = map_groups(executor, _gather_part, units, "classes: encoding")
    return [
        [(dataset.classes[low].split, part) for (low, _), part in zip(own, parts, strict=True)]
        for dataset, own, parts in zip(datasets, ranges, gathered, strict=True)
    ]


def _groups(classes: Sequence[ChosenClass], max_examples: int) -> list[tuple[int, int]]:
    """Cut the classes into runs of one split with about EXAMPLES_PER_PART examples, or CLASSES_PER_PART classes."""
    groups, low, size = [], 0, 0
    for number, each in enumerate(classes):
        size += min(each.count, max_examples)
        is_last = number + 1 == len(classes) or classes[number + 1].split != each.split
        if size >= EXAMPLES_PER_PART or number + 1 - low == CLASSES_PER_PART or is_last:
            groups.append((low, number + 1))
            low, size = number + 1, 0
    return groups


def _gather_part(unit: GatherUnit) -> Part:
    tables = [
        read_range(unit.work / "drawn" / key / DRAWN, unit.low, unit.low + len(unit.classes))
        for key in load_list(unit.work / "lists", unit.drawn)
    ]
    rows = pa.concat_tables(tables)
    numbers = rows["key"].to_numpy().astype(np.int64) - unit.low
    order = np.lexsort((rows["priority"].to_numpy(), numbers))
    starts = np.searchsorted(numbers[order], np.arange(len(unit.classes)))
    rank = np.arange(len(order)) - starts[numbers[order]]
    order = order[rank < unit.max_examples]
    rows = rows.take(pa.array(order)).combine_chunks()
    names = [unit.classes[number] for number in numbers[order].tolist()]
    texts = rows["texts"].to_pylist()

    content = hashlib.blake2b(digest_size=16)
    for name, row, pair in zip(names, rows["row"].to_pylist(), texts, strict=True):
        content.update("\0".join((name, row, *pair, "")).encode())
    identity = [content.hexdigest(), unit.tokenizer_hash, unit.max_length, unit.labelled, unit.stop_words]
    return make_part(unit.work / "classes", identity, lambda folder: _write_classes(unit, names, rows, texts, folder))


def _write_classes(
    unit: GatherUnit, names: list[str], rows: pa.Table, texts: list[list[str]], folder: Path
) -> dict[str, Any]:
    encoder = load_encoder(unit.tokenizer)
    stop_words = StopWords(load_list(unit.work / "lists", unit.stop_words)) if unit.stop_words else None
    pairs: list[str | None] = [None] * len(texts)
    if unit.labelled:
        shown = [first for first, *_ in texts]
        pairs = [second[0] if second else None for _, *second in texts]
        reduced = [list(map(stop_words.remove, pair)) for pair in texts] if stop_words else texts
        encoded, cut = encode_rows(reduced, encoder, unit.max_length)
        masks = [-1] * len(encoded)
    else:
        pieces = [split_at_word(sentence, name) for (sentence,), name in zip(texts, names, strict=True)]
        shown = [encoder.mask_token.join(each) for each in pieces]
        if stop_words:  # after the words are hidden: a class word may be part of a stop word, as of "don't"
            pieces = [stop_words.remove_between(each) for each in pieces]
        masked = encode_masked(pieces, encoder, unit.max_length)
        encoded, masks, cut = [ids for ids, _ in masked], [mask for _, mask in masked], 0
    columns = {
        "class": pa.array(names, pa.string()),
        "row": rows["row"],
        "text": pa.array(shown, pa.string()),
        "pair": pa.array(pairs, pa.string()),
        "text_key": rows["text_key"].to_numpy().astype(np.int64),
        **{name: rows[name] for name in OVERLAP_KEYS},
        "input_ids": int_lists(encoded),
        "mask_position": pa.array(masks, pa.int32()),
    }
    write_class_shard(pa.table(columns), folder / TABLE)
    return {"classes": len(unit.classes), "examples": len(names), "cut": cut, "digest": file_digest(folder / TABLE)}


def encode_rows(texts: list[list[str]], encoder: Encoder, max_length: int) -> tuple[list[list[int]], int]:
    """Return the token ids of rows of one or two texts, with special tokens, and how many rows had to be cut."""
    if texts and len(texts[0]) == 2:
        return encoder.encode_pairs([(first, second) for first, second in texts], max_length)
    room = max_length - encoder.special_tokens
    bodies = encoder.encode([text for (text,) in texts])
    return [[*encoder.prefix, *ids[:room], *encoder.suffix] for ids in bodies], sum(len(ids) > room for ids in bodies)
