"""Whether a prepared corpus has the classes that tasks need, data set by data set."""

from collections.abc import Sequence

from distmeta.corpus.dataset_report import DatasetReport
from distmeta.corpus.datasets import serves
from distmeta.corpus.manifest import Manifest
from distmeta.errors import UserError
from distmeta.tasks.config import SPLITS, Split, TasksConfig, as_words

FEWEST = 2
"""The least classes of any task."""


def require_classes(manifest: Manifest, tasks: TasksConfig, splits: Sequence[Split]) -> None:
    """Raise UserError where one of `splits` has no data set, or one with too few classes, with the numbers at odds.

    Every data set that is trained on needs the fewest classes that a task may have. So does the only one of a corpus in
    every split; of several, those that are only evaluated have smaller tasks where they have fewer classes.
    """
    datasets = manifest.datasets
    several = len(datasets) > 1
    for dataset in datasets:
        is_alone = not several and dataset.role is None
        own = [split for split in splits if is_alone or serves(dataset, split, len(datasets), tasks)]
        _require(dataset, tasks, own, several)
    for split in splits:
        if not any(serves(dataset, split, len(datasets), tasks) for dataset in datasets):
            raise UserError(f"meta-{split} has no data set: give one the role {split} in corpus.sources")


def _require(dataset: DatasetReport, tasks: TasksConfig, splits: Sequence[Split], several: bool) -> None:
    counts = {split: dataset.classes[split].count for split in SPLITS}
    too_small = dataset.classes_left_out
    needed = tasks.fewest_texts
    name = f"{dataset.name}: " if dataset.name else ""
    if splits and too_small and not any(counts.values()):
        largest = max(too_small, key=lambda each: (too_small[each], each))
        raise UserError(
            f"{name}tasks.k_shot + tasks.query_per_class = {needed} examples a class are needed; "
            f"the largest class has {too_small[largest]} ({largest})"
        )
    left_out = "".join(f"; {line}" for line in dataset.describe_left_out())
    fewest = {split: FEWEST if several and split != "train" else tasks.fewest_ways for split in splits}
    if short := [split for split in splits if counts[split] < fewest[split]]:
        held = " and ".join(f"meta-{split} has {counts[split]} classes" for split in short)
        remedy = _remedy(dataset, tasks, several)
        raise UserError(f"{name}{held}, tasks.n_way is {as_words(tasks.n_way)}: {remedy}{left_out}")


def _remedy(dataset: DatasetReport, tasks: TasksConfig, several: bool) -> str:
    total, too_small = sum(parts.count for parts in dataset.classes.values()), dataset.classes_left_out_total
    needed = tasks.fewest_texts
    if not dataset.labelled:
        most = "a quarter of all" if tasks.max_sentences is None else tasks.max_sentences
        few = max(tasks.min_sentences, needed)
        words = f"{total} words stand in {few} to {most} sentences"
        return f"{words}; lower tasks.n_way or tasks.min_sentences, or give more text"
    left_out = f", {too_small} more have fewer than {needed} texts" if too_small else ""
    large = f"{total} classes are large enough{left_out}"
    if dataset.role is not None:
        return f"{large}; lower the low end of tasks.n_way, or leave this data set out"
    if several:
        return f"{large}, too few to be split; give it a role in corpus.sources (train, valid or test)"
    where = "the files of tasks.split_files" if tasks.split_files else f"tasks.split_ratio {tasks.split_ratio}"
    return f"{large}; lower tasks.n_way or change {where}"
