"""Data sets: the parts of a corpus that have a label space each, and its text without labels."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from distmeta.corpus.config import HUGGING_FACE, CorpusConfig, SourceConfig
from distmeta.corpus.kinds import COMPRESSIONS

if TYPE_CHECKING:
    from distmeta.tasks.config import TasksConfig

COMMON = ("text_column", "text_pair_column", "label_column", "role", "weight")
"""What the sources of one labelled data set have in common."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data set of a corpus: a label space of its own, or all text without labels (SMLMT)."""

    name: str
    """As the configuration calls it; empty where nothing names it."""
    sources: tuple[SourceConfig, ...]
    """In the order of the configuration, each with its label and pair column filled in."""
    text_column: str
    """A source of text without labels may have another, of its own."""
    pair_column: str | None
    label_column: str | None
    """None: it is text without labels."""
    role: Literal["train", "valid", "test"] | None
    """The split that all its classes are in; None: its classes are split."""
    weight: float

    @property
    def labelled(self) -> bool:
        """Whether its classes are labels, and not words."""
        return self.label_column is not None


def datasets_of(corpus: CorpusConfig, tasks: "TasksConfig") -> list[Dataset]:
    """Return the data sets of a corpus by name, whatever the order of the sources.

    All text without labels is one of them, with the name that any of its sources has. Sources with labels are one
    where they have the same name; without a name, a source with a label column, a role or a weight of its own is one by
    itself, called as its path is, and all others are one together.
    """
    found = []
    for name, group in groupby(sorted(_named(corpus, tasks), key=lambda each: each[0]), key=lambda each: each[0]):
        sources = tuple(source for _, source in group)
        first = sources[0]
        pair, label = first.text_pair_column, first.label_column
        text = tasks.text_column if label is None else first.text_column or tasks.text_column
        weight = 1.0 if first.weight is None else first.weight
        found.append(Dataset(name, sources, text, pair, label, first.role, weight))
    return found


def names_of_sources(corpus: CorpusConfig, tasks: "TasksConfig") -> list[str]:
    """Return the name of the data set that each source belongs to, in the order of the configuration."""
    return [name for name, _ in _named(corpus, tasks)]


def _named(corpus: CorpusConfig, tasks: "TasksConfig") -> list[tuple[str, SourceConfig]]:
    """Return every source, with its label and pair column filled in, and the name of its data set."""
    named: list[tuple[str, SourceConfig]] = []
    for entry in corpus.sources:
        source = SourceConfig(path=entry) if isinstance(entry, str) else entry
        label = source.label_column or tasks.label_column
        pair = source.text_pair_column or (tasks.text_pair_column if label is not None else None)
        columns = {"label_column": label, "text_pair_column": pair}
        named.append((_name(source, label), source.model_copy(update=columns)))
    of_text = next((name for name, source in named if source.label_column is None and name), "")
    return [(name if source.label_column is not None else of_text, source) for name, source in named]


def _name(source: SourceConfig, label_column: str | None) -> str:
    if source.name is not None:
        return source.name
    has_its_own = source.label_column is not None or source.role is not None or source.weight is not None
    return name_of_path(source.path) if label_column is not None and has_its_own else ""


def name_of_path(path: str) -> str:
    """Return the name of the file, folder or data set behind a path, without its endings; of a glob, the folder's."""
    place = PurePosixPath(re.sub(r"/?[^/]*[*?\[].*", "", path.removeprefix(HUGGING_FACE)))
    if place.suffix.lower() in COMPRESSIONS:
        place = place.with_suffix("")
    return place.stem.removeprefix("builtin:") or path


def contradictions_of_datasets(corpus: CorpusConfig, tasks: "TasksConfig") -> Iterable[str]:
    """Yield a line for each thing that the sources say and no data set can be."""
    named = _named(corpus, tasks)
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
    yield from _split_files(datasets_of(corpus, tasks), tasks)


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
