"""Settings of the tasks."""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from distmeta.section import Section


def check_range(value: int | list[int], lowest: int) -> int | list[int]:
    """The value itself, of a setting that is a number or a range.

    Raises:
        ValueError: it is neither, or below `lowest`.
    """
    ends = [value] if isinstance(value, int) else value
    if isinstance(value, list) and len(value) != 2:
        raise ValueError("should be a number, or two as [low, high]")
    if min(ends) < lowest:
        raise ValueError(f"should be {lowest} or more")
    if ends[0] > ends[-1]:
        raise ValueError("should have its lower end first")
    return value


Ways = Annotated[int | list[int], AfterValidator(partial(check_range, lowest=2))]
"""Classes in a task: a number, or [lowest, highest]."""
Shots = Annotated[int | list[int], AfterValidator(partial(check_range, lowest=1))]
"""Support examples a class: a number, or [lowest, highest]."""


def bounds(value: int | list[int]) -> tuple[int, int]:
    """The lowest and the highest value of a setting that is a number or a range."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def as_words(value: int | str | list[int] | None) -> str:
    """A number, a range or `all` as a person reads it: `5`, `2 to 12`, `all`."""
    return "{} to {}".format(*value) if isinstance(value, list) else str(value)


def most_ways(n_way: int | list[int], k_shot: int | list[int], query_per_class: int, max_texts: int | None) -> int:
    """The most classes of a task, as far as `max_texts` allows; what the low ends need is always allowed."""
    low, high = bounds(n_way)
    return high if max_texts is None else max(low, min(high, max_texts // (bounds(k_shot)[0] + query_per_class)))


def most_shots(ways: int, k_shot: int | list[int], query_per_class: int, max_texts: int | None) -> int:
    """The most support examples a class of a task of so many classes."""
    low, high = bounds(k_shot)
    return high if max_texts is None else max(low, min(high, max_texts // ways - query_per_class))


def _template(value: Any) -> Any:
    """True is the name alone, which YAML has as an empty mapping where it is written without quotes."""
    return {True: "{}", False: None}.get(value, value) if isinstance(value, bool) else "{}" if value == {} else value


def _has_place(value: str | None) -> str | None:
    if value is not None and "{}" not in value:
        raise ValueError("should have {} where the name goes, or be true")
    return value


Template = Annotated[str | None, BeforeValidator(_template), AfterValidator(_has_place)]
"""A text with a place for a name."""


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

    n_way: Ways = 5
    """Classes in a task: a number, or [low, high] of which every task draws one."""
    k_shot: Shots = 5
    """Support examples a class: a number, or [low, high] of which every task draws one."""
    query_per_class: int = Field(default=5, ge=1)
    """Query examples a class."""
    max_texts: int | None = Field(default=None, ge=4)
    """Most texts of a task, support and query, which bounds what is drawn from ranges of ways and shots; unset: any."""
    source_power: float = Field(default=0.0, ge=0)
    """A dataset's share of the tasks is its weight times its number of training texts to this power; 0: evenly."""
    smlmt_share: float | None = Field(default=None, ge=0, le=1)
    """Share of SMLMT tasks where `corpus.sources` has text without labels beside labelled sets; 0: none; unset: no
    such mixture."""
    text_column: str = "text"
    """Column that holds the text, where a source has columns."""
    text_pair_column: str | None = None
    """Column of a second text, for tasks on pairs."""
    label_column: str | None = None
    """Column that holds the class; unset: SMLMT tasks are made from the text itself."""
    class_names: Template = None
    """Gives each class of a labelled set its name as one more support example: true, or a text with {} for the name, in
    which underscores and the like become spaces; unset: names are not used."""
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

    @property
    def fewest_ways(self) -> int:
        """The fewest classes of a task, which every split has to have."""
        return bounds(self.n_way)[0]

    @property
    def fewest_texts(self) -> int:
        """The fewest different texts with which a class takes part in a task."""
        return bounds(self.k_shot)[0] + self.query_per_class

    def of_corpus(self) -> dict[str, Any]:
        """The settings that decide what a prepared corpus holds, but for the contents of `split_files`.

        The upper ends of ranges, and what only weighs datasets, change the tasks that are drawn from it alone.
        """
        drawn_only = {"split_files", "max_texts", "source_power", "smlmt_share", "class_names"}
        settings = self.model_dump(exclude=drawn_only)
        return settings | {"n_way": self.fewest_ways, "k_shot": bounds(self.k_shot)[0]}


Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
