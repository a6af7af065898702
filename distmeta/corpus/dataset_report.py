"""What the manifest says of each data set: its rows, its classes in each split, and what was left out."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from distmeta.corpus.alike import describe_alike, describe_like_missing
from distmeta.corpus.reports import Frozen, RowCounts, describe_vanished


class ClassParts(Frozen):
    """The class-complete shards of one split."""

    count: int
    """Classes."""
    examples: int
    parts: list[str]
    """Below the corpus directory; no class stands in two."""


class DatasetReport(Frozen):
    """One data set of a corpus."""

    name: str
    """Empty where the configuration names none."""
    labelled: bool
    """Whether its classes are labels, and not words of text without any."""
    role: Literal["train", "valid", "test"] | None = None
    """The split that all its classes are in; null: its classes are split."""
    rows: RowCounts
    repeats: int
    """Rows whose text (and label) an earlier row of it has; dropped where `corpus.deduplicate` is on."""
    texts_under_two_labels: int
    """Texts, compared without case and white space, that stand under more than one label."""
    classes: dict[str, ClassParts]
    """By split: train, valid, test."""
    classes_by_ratio: list[int] = Field(default_factory=list)
    """How many classes `tasks.split_ratio` alone would give the splits, where `tasks.n_way` takes more in one."""
    classes_left_out: dict[str, int] = Field(default_factory=dict)
    """Labels with fewer different texts than a task takes, and how many they have: the largest ones."""
    classes_left_out_total: int = 0
    """How many such labels there are."""
    classes_in_no_split: int = 0
    """Labels that stand in none of `tasks.split_files`."""
    labels_alike: list[dict[str, str]] = Field(default_factory=list)
    """Groups of class names that differ in Unicode form, case, blanks or width alone, or as 1 and 1.0: the split of
    each name."""
    labels_alike_total: int = 0
    """How many such groups there are."""
    labels_like_missing: list[str] = Field(default_factory=list)
    """Names of classes that programs also write for a missing label, such as NaN."""
    words_left_out: dict[str, int] = Field(default_factory=dict)
    """SMLMT: stretches of text that are no classes since nothing tells where words end in them, by script."""
    classes_vanished: list[str] = Field(default_factory=list)
    """Labels of dropped rows, as far as they can be told, that no row is left of."""

    def describe_rows(self) -> str:
        """Return a line on its rows and classes, as one of several."""
        kept, read = self.rows.kept, self.rows.read
        kind = f", all meta-{self.role}" if self.role else "" if self.labelled else ", text without labels"
        classes = ", ".join(f"{parts.count} meta-{split}" for split, parts in self.classes.items() if parts.count)
        name = self.name or ("the sources without a name" if self.labelled else "the text")
        return f"  {name}{kind}: {kept} of {read} rows kept; classes: {classes or 'none'}"

    def describe_classes(self) -> list[str]:
        """Return what a user wants to know of its classes but their number, in a few lines."""
        lines = []
        if self.classes_by_ratio:
            train, valid, test = self.classes_by_ratio
            lines.append(
                f"tasks.split_ratio alone gives {train}, {valid} and {test} classes: some were moved to where there "
                "are fewer than tasks.n_way, so that another n_way makes other splits"
            )
        if self.classes_left_out:
            names = ", ".join(f"{name} ({count})" for name, count in list(self.classes_left_out.items())[:5])
            lines.append(f"{self.classes_left_out_total} classes are too small for a task and left out: {names}")
        if self.classes_in_no_split:
            lines.append(f"{self.classes_in_no_split} classes stand in no split file and are left out")
        lines += describe_alike(self.labels_alike, self.labels_alike_total)
        lines += describe_like_missing(self.labels_like_missing)
        return self._named([*lines, *self.describe_left_out()])

    def describe_left_out(self) -> list[str]:
        """Return a line about the text that can give no classes; none where all can."""
        if not self.words_left_out:
            return []
        told = ", ".join(f"{count} of {script}" for script, count in self.words_left_out.items())
        return [f"words that no dictionary here can tell from their neighbours are no classes: {told}"]

    def describe_vanished(self) -> list[str]:
        """Return a line on the classes of which no row is left, where there are any."""
        return describe_vanished(self.classes_vanished, self.name)

    def _named(self, lines: Sequence[str]) -> list[str]:
        return [line if line.startswith(" ") or not self.name else f"{self.name}: {line}" for line in lines]


class Leak(Frozen):
    """Texts of a held-out split that stand in what is trained on, of another data set."""

    dataset: str
    split: str
    texts: int
    """Different texts that tasks of the split are drawn from."""
    trained: str
    """The data set that has some of them, too."""
    exact: int
    """How many stand there to the character."""
    near: int
    """How many, with case, spaces and punctuation set aside."""

    def describe(self) -> str:
        """Return a line on it."""
        where = self.trained or "what is trained on"
        return (
            f"{self.dataset or 'the corpus'}: {self.near} of {self.texts} meta-{self.split} texts stand in {where} "
            f"({self.exact} to the character): they are counted, not dropped"
        )
