"""Data sets: the parts of a corpus that have a label space each, and its text without labels."""

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, Protocol

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
    for name, group in groupby(
        sorted(named_sources(corpus, tasks), key=lambda each: each[0]), key=lambda each: each[0]
    ):
        sources = tuple(source for _, source in group)
        first = sources[0]
        pair, label = first.text_pair_column, first.label_column
        text = tasks.text_column if label is None else first.text_column or tasks.text_column
        weight = 1.0 if first.weight is None else first.weight
        found.append(Dataset(name, sources, text, pair, label, first.role, weight))
    return found


def names_of_sources(corpus: CorpusConfig, tasks: "TasksConfig") -> list[str]:
    """Return the name of the data set that each source belongs to, in the order of the configuration."""
    return [name for name, _ in named_sources(corpus, tasks)]


def named_sources(corpus: CorpusConfig, tasks: "TasksConfig") -> list[tuple[str, SourceConfig]]:
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


class Served(Protocol):
    """What decides which splits have tasks of a data set: of one in the configuration, or in a manifest."""

    @property
    def labelled(self) -> bool:
        """Whether its classes are labels."""

    @property
    def role(self) -> str | None:
        """The split that all its classes are in."""


def serves(dataset: Served, split: str, among: int, tasks: "TasksConfig") -> bool:
    """Whether tasks of a split come from a data set, which is one `among` so many, as far as the configuration says.

    Text without labels beside others has tasks where it has a share of them.
    """
    if not dataset.labelled and among > 1 and not tasks.smlmt_share:
        return False
    if dataset.role is not None:
        return dataset.role == split
    if dataset.labelled and tasks.split_files is not None:
        return True
    return tasks.split_ratio[("train", "valid", "test").index(split)] > 0
