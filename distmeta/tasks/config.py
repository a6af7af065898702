"""Settings of the tasks."""

from typing import Literal

from pydantic import Field

from distmeta.section import Section


class SplitFiles(Section):
    """The classes of each split, by file."""

    train: str
    """File with the name of a meta-training class a line."""
    valid: str
    """File with the name of a meta-validation class a line."""
    test: str
    """File with the name of a meta-test class a line."""


class TasksConfig(Section):
    """Which tasks are made, and from what."""

    n_way: int = Field(default=5, ge=2)
    """Classes in a task."""
    k_shot: int = Field(default=5, ge=1)
    """Support examples a class."""
    query_per_class: int = Field(default=5, ge=1)
    """Query examples a class."""
    text_column: str = "text"
    """Column that holds the text, where a source has columns."""
    text_pair_column: str | None = None
    """Column of a second text, for tasks on pairs."""
    label_column: str | None = None
    """Column that holds the class; unset: SMLMT tasks are made from the text itself."""
    split_files: SplitFiles | None = None
    """Class names of each split by file; unset: by `split_ratio`."""
    split_ratio: list[float] = Field(default=[0.6, 0.2, 0.2], min_length=3, max_length=3)
    """Shares of the classes for meta-train, meta-valid and meta-test."""
    min_sentences: int = Field(default=12, ge=1)
    """SMLMT: a word that stands in fewer sentences is no class (sentences)."""
    max_sentences: int | None = Field(default=None, ge=1)
    """SMLMT: a word that stands in more sentences is no class; unset: a quarter of all sentences (sentences)."""
    max_classes: int = Field(default=4000, ge=2)
    """SMLMT: at most so many words become classes, chosen by hash."""
    max_examples: int = Field(default=500, ge=2)
    """Examples kept a class, chosen by hash."""


Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
