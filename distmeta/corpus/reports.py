"""Reports: what became of every source, and which losses are refused."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from distmeta.corpus.records import EMPTY, LOSSES, PLACES, Tally
from distmeta.errors import UserError
from distmeta.store.folders import present

LINES = 20
"""A message tells of so many files; the manifest of all."""


class Frozen(BaseModel):
    """A part of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RowCounts(Frozen):
    """What became of the records: `read` is `kept` and all of `dropped`."""

    read: int
    kept: int
    dropped: dict[str, int]
    """By reason."""

    @classmethod
    def of(cls, counts: Iterable[Self]) -> Self:
        """Return what they count together."""
        counts = list(counts)
        dropped = sum((Counter(each.dropped) for each in counts), Counter[str]())
        read, kept = sum(each.read for each in counts), sum(each.kept for each in counts)
        return cls(read=read, kept=kept, dropped=dict(sorted(dropped.items())))


class SourceReport(Frozen):
    """One file, or a data set on a hub."""

    dataset: str = ""
    """The data set that it is a part of."""
    name: str
    path: str
    bytes: int
    """Stored size."""
    content_hash: str
    records: int
    """Records read from it."""
    problems: list[str]
    """What was wrong with it as a whole: something in it is lost."""
    notes: list[str] = Field(default_factory=list)
    """What else is to be said of it: nothing is lost by that."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Records that were not kept, by reason."""
    places: dict[str, list[str]] = Field(default_factory=dict)
    """Of each reason, where the first ones stood and what stood there."""

    def loss(self) -> str | None:
        """Return what is lost of it, in a line that begins with its place; None for a source that was read whole."""
        lost = {reason: count for reason, count in self.dropped.items() if reason in LOSSES}
        told = list(self.problems)
        if lost:
            first = "; ".join(f"{count} {reason}, {self.places[reason][0]}" for reason, count in lost.items())
            told.append(f"{sum(lost.values())} of {self.records} rows lost ({first})")
        return f"{self.path}: {'; '.join(told)}" if told else None


def report_source(
    name: str, path: str, size: int, content_hash: str, tallies: Sequence[Tally], dataset: str = ""
) -> SourceReport:
    """Return what became of a source, given the tallies of its pieces in order."""
    records = sum(tally.read for tally in tallies)
    dropped = Counter[str]()
    places: dict[str, list[str]] = {}
    for tally in tallies:
        dropped.update(tally.dropped)
        for reason, own in tally.places.items():
            places[reason] = [*places.get(reason, []), *own][:PLACES]
    notes = dict.fromkeys(note for tally in tallies for note in tally.notes)
    if records:
        notes.pop(EMPTY, None)  # it is one of its pieces that is
    return SourceReport(
        dataset=dataset,
        name=name,
        path=path,
        bytes=size,
        content_hash=content_hash,
        records=records,
        problems=list(dict.fromkeys(problem for tally in tallies for problem in tally.problems)),
        notes=list(notes),
        dropped=dict(dropped),
        places=places,
    )


def losses(sources: Iterable[SourceReport]) -> list[str]:
    """Return a line for each source that could not be read whole; of many, the first ones and how many more."""
    lines = [line for source in sources if (line := source.loss()) is not None]
    more = len(lines) - LINES
    return lines if more <= 0 else [*lines[:LINES], f"and {more} more (manifest.json, `sources`)"]


def refuse_losses(sources: Sequence[SourceReport], vanished: Sequence[str]) -> None:
    """Raise UserError, naming every source that could not be read whole, where there is one.

    `vanished` are the lines on classes of which no row is left.
    """
    lost = [line for source in sources if (line := source.loss()) is not None]
    if not lost:
        return
    whole = f"{len(lost)} of {len(sources)} sources" if len(sources) > 1 else "its source"
    more = [f"and {len(lost) - LINES} more"] if len(lost) > LINES else []
    raise UserError(
        "\n".join(
            [
                f"corpus.sources: {whole} cannot be read whole, and the corpus was not made:",
                *(f"  {line}" for line in [*lost[:LINES], *more]),
                *(f"  {line}" for line in vanished),
                "mend that, or go on without what is lost by corpus.accept_losses: true",
            ]
        )
    )


def dropped_rows(sources: Iterable[SourceReport]) -> Iterator[str]:
    """Yield where the first dropped records of each reason stand, a line a place, by file."""
    for source in sources:
        yield from (f"{source.path}: {problem}" for problem in source.problems)
        for reason, count in source.dropped.items():
            for place in source.places[reason]:
                yield f"{source.path}: {reason}: {place}"
            if (more := count - len(source.places[reason])) > 0:
                yield f"{source.path}: {reason}: and {more} more"


def vanished_classes(dropped_labels: Iterable[str], shards: Iterable[Path]) -> list[str]:
    """Return the labels of dropped records that no record in the shards has."""
    gone = set(dropped_labels)
    for shard in shards:
        if not gone:
            break
        gone.difference_update(pc.unique(pq.read_table(present(shard), columns=["label"])["label"]).to_pylist())
    return sorted(gone)


def describe_vanished(classes: Sequence[str], dataset: str = "") -> list[str]:
    """Return a line on classes of a data set of which no row is left, where there are any."""
    if not classes:
        return []
    names = ", ".join(f'"{name}"' for name in classes[:10]) + (", ..." if len(classes) > 10 else "")
    left = "1 class has" if len(classes) == 1 else f"{len(classes)} classes have"
    of = f"{dataset}: " if dataset else ""
    return [f"{of}{left} no row left, as far as labels can be told in rows that were dropped: {names}"]
