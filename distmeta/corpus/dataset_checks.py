"""What the sources of a corpus allow alone, and no data set can be."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from distmeta.corpus.config import CorpusConfig, SourceConfig
from distmeta.corpus.datasets import COMMON, Dataset, datasets_of, named_sources, serves

if TYPE_CHECKING:
    from distmeta.tasks.config import TasksConfig


def contradictions_of_datasets(corpus: CorpusConfig, tasks: "TasksConfig") -> Iterable[str]:
    """Yield a line for each thing that the sources say and no data set can be."""
    named = named_sources(corpus, tasks)
    for _, source in named:
        if source.label_column is None:
            yield from _more_than_text(source)
    names = dict.fromkeys(source.name for _, source in named if source.label_column is None and source.name)
    if len(names) > 1:
        yield (
            f"corpus.sources: text without labels is one data set, and here it has the names {_listed(names)}; give it "
            "one of them, or label_column where there are labels"
        )
    implied = Counter(name for name, source in named if name and source.name is None and source.label_column)
    given = {source.name for _, source in named}
    for name, count in implied.items():
        if count > 1 or name in given:
            yield (
                f"corpus.sources: more than one would be called {name}; give each a `name`, the same one to those that "
                "are one data set"
            )
            return
    for dataset in datasets_of(corpus, tasks):
        for key in COMMON if dataset.labelled else ("label_column",):
            values = dict.fromkeys(getattr(source, key) for source in dataset.sources)
            if key == "text_column":
                values = dict.fromkeys(value or tasks.text_column for value in values)
            if len(values) > 1:
                yield (
                    f"corpus.sources: {dataset.name or 'those without a name'}: they differ in {key}, "
                    f"{_listed(values)}, and are one data set; give them the same, or names of their own"
                )
    datasets = datasets_of(corpus, tasks)
    yield from _split_files(datasets, tasks)
    yield from _shares(datasets, tasks)


def _more_than_text(source: SourceConfig) -> Iterable[str]:
    """Yield a line for each setting of a source that is only for labels, where it has none."""
    remedies = {
        "role": "words are split by tasks.split_ratio",
        "weight": "how often its tasks come is tasks.smlmt_share",
        "text_pair_column": "its texts are single ones",
    }
    for key, why in remedies.items():
        if getattr(source, key) is not None:
            told = f"it has no labels, and {why}; leave it out, or set label_column"
            yield f"corpus.sources: {source.path}: {key}: {told}"


def _split_files(datasets: Sequence[Dataset], tasks: "TasksConfig") -> Iterable[str]:
    if tasks.split_files is None:
        return
    labelled = [dataset for dataset in datasets if dataset.labelled]
    split = [dataset for dataset in labelled if dataset.role is None]
    if not labelled:
        yield "tasks.split_files: names classes of a labelled set; set tasks.label_column as well"
    elif not split:
        yield "tasks.split_files: all classes are in the splits that the roles in corpus.sources name; leave it out"
    elif len(split) > 1:
        yield (
            f"tasks.split_files: names classes of one data set, and {_listed(each.name for each in split)} have no "
            "role; give one to all but one of them"
        )


def _listed(names: Iterable[str | float | None]) -> str:
    return " and ".join("none" if name is None else repr(name) if name == "" else str(name) for name in names)


def _shares(datasets: Sequence[Dataset], tasks: "TasksConfig") -> Iterable[str]:
    labelled = [dataset for dataset in datasets if dataset.labelled]
    is_mixed = 0 < len(labelled) < len(datasets)
    if is_mixed and tasks.smlmt_share is None:
        yield (
            "tasks.smlmt_share: corpus.sources has text without labels beside labelled sets; set the share of SMLMT "
            "tasks, such as 0.2 (0: the text is for language modelling alone)"
        )
    if not is_mixed and tasks.smlmt_share is not None:
        what = "no text without labels beside its labelled sets" if labelled else "no labelled set beside its text"
        yield f"tasks.smlmt_share: corpus.sources has {what}; leave it out, or name sources of both kinds"
    trained = [dataset for dataset in labelled if serves(dataset, "train", len(datasets), tasks)]
    if trained and all(dataset.weight == 0 for dataset in trained):
        yield "corpus.sources: weight: every labelled set that is trained on has weight 0; give one of them more"


def splits_without_data(corpus: CorpusConfig, tasks: "TasksConfig", needed: dict[str, str]) -> Iterable[str]:
    """Yield a line for each split that is needed, given with what needs it, and that no data set has classes in."""
    datasets = datasets_of(corpus, tasks)
    if len(datasets) == 1 and datasets[0].role is None:
        return  # its number of classes says more
    for split, why in needed.items():
        if not any(serves(dataset, split, len(datasets), tasks) for dataset in datasets):
            yield (
                f"corpus.sources: no data set has classes for meta-{split}, which {why}; give one the role {split}, or "
                "none, so that its classes are split"
            )
