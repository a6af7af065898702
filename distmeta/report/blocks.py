"""What a page is made of."""

from dataclasses import dataclass, field


@dataclass
class Picture:
    """A drawing, its title above and a line of text below it."""

    title: str
    svg: str
    """Markup that may stand in a page as it is."""
    caption: str


@dataclass
class Cell:
    """A cell of a table."""

    text: str
    value: float | str | None = None
    """What the row is sorted by; None: it comes last."""
    badges: tuple[str, ...] = ()
    note: str = ""
    """Small print below."""


@dataclass
class Column:
    """A column of a table."""

    title: str
    is_text: bool = False


@dataclass
class Table:
    """A table; where `sortable`, by any of its columns."""

    columns: list[Column]
    rows: list[list[Cell]]
    caption: str = ""
    sortable: bool = False


@dataclass
class Section:
    """A part of a page under one heading."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: str = ""
    """Text that stands as it is, folded away."""

    @property
    def has_content(self) -> bool:
        """Whether there is anything under the heading."""
        return bool(self.paragraphs or self.pictures or self.tables or self.folded)


@dataclass
class Page:
    """A page: its headline, the figures that count, and the rest in sections."""

    kind: str
    title: str
    subtitle: str
    question: str
    answer: str
    findings: list[str]
    facts: list[tuple[str, str]]
    """Names and values, of which those that are not there are left out."""
    sections: list[Section]
    missing: list[str]
    """A line for each thing that is left out, with the reason."""
