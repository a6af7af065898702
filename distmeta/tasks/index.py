"""The class index: which classes there are, the split of each, and their examples, complete in one file a class."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from distmeta.corpus.alike import GROUPS, find_alike, look, name_splits, spelled
from distmeta.corpus.datasets import Dataset
from distmeta.corpus.executor import Executor
from distmeta.corpus.parts import Part, save_list
from distmeta.corpus.repeats import find_repeats
from distmeta.corpus.shards import Shard
from distmeta.corpus.words import hash64
from distmeta.errors import UserError
from distmeta.tasks.config import SPLITS, Split, TasksConfig
from distmeta.tasks.index_draw import ChosenClass, Gathered, draw_examples, gather_classes
from distmeta.tasks.index_examples import KEYS, DistinctExamples, Wanted, count_classes, find_examples, merge_counts

NAMES_LEFT_OUT = 1000
"""Labels too small for a task that are named; the others are counted."""


@dataclass(frozen=True, slots=True)
class ClassChoice:
    """Which classes of a data set tasks are made of, and where their examples are to be found."""

    labelled: bool
    classes: list[ChosenClass]
    """By split and name."""
    too_small: dict[str, int]
    """Labels with fewer distinct texts than a task takes, and how many they have: the NAMES_LEFT_OUT largest."""
    too_small_total: int
    """How many such labels there are."""
    in_no_split: int
    """Labels that stand in no split file."""
    left_out: dict[str, int]
    """Stretches of text that are no classes since their script sets no bounds to words, by script."""
    alike: list[dict[str, str]]
    """Names that look the same, each with its split: as `alike.name_splits` returns them, at most GROUPS."""
    alike_total: int
    """How many groups of such names there are."""
    examples: list[DistinctExamples]

    def names(self, split: Split) -> list[str]:
        """Return the names of a split's classes."""
        return [each.name for each in self.classes if each.split == split]


def choose_classes(
    datasets: Sequence[tuple[Dataset, Sequence[Shard]]],
    tasks: TasksConfig,
    split_names: Mapping[Split, Sequence[str]] | None,
    *,
    min_words: int,
    stop_words: frozenset[str] | None,
    work: Path,
    executor: Executor,
) -> list[ClassChoice]:
    """Find the classes in each data set, labels or words (SMLMT), and give each class its split.

    `split_names` is what `read_split_files` returns, for the labelled data set without a role. Raises UserError where a
    class in them is not in the data.
    """
    found = find_examples(
        [(shards, dataset.labelled) for dataset, shards in datasets], min_words, stop_words, work, executor
    )
    tables = [([part.folder / KEYS for part in parts], _total(parts, "examples")) for parts in found]
    repeats = find_repeats(work / "example-repeats", tables, executor, "classes: comparing examples")
    examples = [_distinct(parts, own, work) for parts, own in zip(found, repeats, strict=True)]
    counted = count_classes(examples, executor)
    wanted = [
        Wanted(parts) if dataset.labelled else _words_wanted(parts, tasks)
        for (dataset, _), parts in zip(datasets, counted, strict=True)
    ]
    merged = merge_counts(wanted, work, executor)
    choices = []
    for (dataset, _), parts, own, classes in zip(datasets, found, examples, merged, strict=True):
        if dataset.labelled:
            choices.append(_choose_labels(dataset, classes, own, tasks, split_names))
        else:
            choices.append(_choose_words(classes, parts, own, tasks))
    return choices


def _distinct(found: Sequence[Part], repeats: Sequence[Part], work: Path) -> list[DistinctExamples]:
    listing = save_list(work / "lists", [f"example-repeats/{part.key}" for part in repeats])
    return [DistinctExamples(work, number, f"examples/{part.key}", listing) for number, part in enumerate(found)]


def _words_wanted(counted: Sequence[Part], tasks: TasksConfig) -> Wanted:
    most = _total(counted, "examples") // 4 if tasks.max_sentences is None else tasks.max_sentences
    return Wanted(counted, max(tasks.min_sentences, tasks.fewest_texts), most, tasks.max_classes)


def _choose_words(
    words: pa.Table, found: Sequence[Part], examples: list[DistinctExamples], tasks: TasksConfig
) -> ClassChoice:
    left_out = sum((Counter(part.summary["left_out"]) for part in found), Counter[str]())
    classes = _split_by_ratio(words.to_pylist(), tasks)
    alike, total = _alike([each.name for each in classes], classes)
    return ClassChoice(False, classes, {}, 0, 0, dict(left_out.most_common()), alike, total, examples)


def _choose_labels(
    dataset: Dataset,
    labels: pa.Table,
    examples: list[DistinctExamples],
    tasks: TasksConfig,
    split_names: Mapping[Split, Sequence[str]] | None,
) -> ClassChoice:
    # A column of free text may have as many labels as rows: what is too small stays in Arrow.
    large = labels.filter(pc.field("count") >= tasks.fewest_texts).to_pylist()
    small = labels.filter(pc.field("count") < tasks.fewest_texts)
    largest = small.sort_by([("count", "descending"), ("name", "ascending")])[:NAMES_LEFT_OUT]
    too_small = dict(zip(largest["name"].to_pylist(), largest["count"].to_pylist(), strict=True))
    names = labels["name"].to_pylist()
    if dataset.role is not None or split_names is None:
        if dataset.role is None:
            classes = _split_by_ratio(large, tasks)
        else:
            classes = _in_order([_chosen(label, dataset.role) for label in large])
        return ClassChoice(True, classes, too_small, len(small), 0, {}, *_alike(names, classes), examples)
    split_of = {name: split for split, names in split_names.items() for name in names}
    wanted = pa.array(list(split_of), pa.string())
    present = set(labels["name"].filter(pc.is_in(labels["name"], wanted)).to_pylist())
    for split, in_file in split_names.items():
        if missing := [name for name in in_file if name not in present]:
            raise UserError(f"tasks.split_files.{split}: the data have no class {_some(missing)}{_but(missing, names)}")
    classes = _in_order([_chosen(label, split_of[label["name"]]) for label in large if label["name"] in split_of])
    alike, total = _alike(names, classes)
    return ClassChoice(True, classes, too_small, len(small), len(labels) - len(present), {}, alike, total, examples)


def _alike(names: Sequence[str], classes: Sequence[ChosenClass]) -> tuple[list[dict[str, str]], int]:
    groups = find_alike(names)
    return name_splits(groups, {each.name: each.split for each in classes})[:GROUPS], len(groups)


def _but(missing: Sequence[str], names: Sequence[str]) -> str:
    """Return what the data have that looks like the first of the missing names, as the end of a message."""
    found = [name for name in names if look(name) == look(missing[0])]
    return f"; they have {', '.join(map(spelled, found))}, which looks like {spelled(missing[0])}" if found else ""


def build_classes(
    choices: Sequence[ClassChoice],
    tasks: TasksConfig,
    tokenizer: Part,
    max_length: int,
    stop_words: frozenset[str] | None,
    work: Path,
    executor: Executor,
) -> list[list[tuple[Split, Part]]]:
    """Make the class-complete shards of each data set; see `index_draw.gather_classes`."""
    chosen = [(choice.classes, choice.examples) for choice in choices]
    drawn = draw_examples(chosen, tasks.max_examples, work, executor)
    return gather_classes(
        [Gathered(choice.classes, choice.labelled, parts) for choice, parts in zip(choices, drawn, strict=True)],
        max_examples=tasks.max_examples,
        tokenizer=tokenizer,
        max_length=max_length,
        stop_words=stop_words,
        work=work,
        executor=executor,
    )


def read_split_files(tasks: TasksConfig) -> dict[Split, list[str]] | None:
    """Return the class names of each split as the files have them, byte for byte; None where no files are configured.

    Raises UserError for a file that cannot be read and for a class in two files.
    """
    if tasks.split_files is None:
        return None
    names: dict[Split, list[str]] = {}
    for split in SPLITS:
        path = Path(getattr(tasks.split_files, split))
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"tasks.split_files.{split}: {path}: cannot be read as UTF-8 text ({error})") from error
        names[split] = list(dict.fromkeys(line.removesuffix("\r") for line in text.split("\n") if line.strip()))
    for first, second in combinations(SPLITS, 2):
        if both := [name for name in names[first] if name in set(names[second])]:
            raise UserError(
                f"tasks.split_files: {first} and {second} both have the class {_some(both)}; keep it in one"
            )
    return names


def _split_by_ratio(classes: Sequence[dict[str, object]], tasks: TasksConfig) -> list[ChosenClass]:
    """Split classes, which come in the order of their names' hashes, by that order."""
    counts = split_counts(len(classes), tasks.split_ratio, tasks.fewest_ways)
    splits = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return _in_order([_chosen(each, split) for each, split in zip(classes, splits, strict=True)])


def split_counts(classes: int, ratio: Sequence[float], n_way: int) -> list[int]:
    """Return how many classes each split gets: by ratio (largest remainders), but `n_way` where there are enough.

    A split with ratio 0 gets none.
    """
    shares = [classes * part / sum(ratio) for part in ratio]
    counts = [int(share + 1e-9) for share in shares]
    remainders = sorted(range(3), key=lambda split: (counts[split] - shares[split], split))
    for split in remainders[: classes - sum(counts)]:
        counts[split] += 1
    wanted = [n_way if part > 0 else 0 for part in ratio]
    if sum(wanted) <= classes:
        while short := [split for split in range(3) if counts[split] < wanted[split]]:
            richest = max(range(3), key=lambda split: counts[split] - wanted[split])
            counts[richest] -= 1
            counts[short[0]] += 1
    return counts


def _chosen(counted: Mapping[str, object], split: Split) -> ChosenClass:
    name, count = str(counted["name"]), counted["count"]
    assert isinstance(count, int)
    return ChosenClass(name, hash64(name), count, split)


def _in_order(classes: Sequence[ChosenClass]) -> list[ChosenClass]:
    return sorted(classes, key=lambda each: (SPLITS.index(each.split), each.name))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


def _total(parts: Sequence[Part], field: str) -> int:
    return sum(part.summary[field] for part in parts)
