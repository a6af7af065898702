"""Rows that are given for training and for testing, in draws, as LEOPARD has them (Bansal et al. 2020): each draw is an
episode."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from distmeta.corpus.config import CorpusConfig
from distmeta.corpus.datasets import Dataset
from distmeta.corpus.executor import Executor
from distmeta.corpus.parts import read_parquet
from distmeta.corpus.records import shown
from distmeta.corpus.rows import find_rows, read_rows
from distmeta.errors import UserError
from distmeta.tasks.episode import Example, Task
from distmeta.tasks.names import name_text

TRAIN = ("train", "training", "support")
"""Names of the part that is trained on, where none is given."""


@dataclass(frozen=True)
class Columns:
    """Which columns say what a row is given for."""

    part: str
    draw: str | None = None
    shots: str | None = None


@dataclass(frozen=True)
class Row:
    """A row of the file. Where it says no draw or no number of shots, it belongs to all."""

    name: str
    texts: tuple[str, ...]
    label: str
    part: str
    draw: str | None
    shots: str | None


@dataclass(frozen=True)
class GivenDraws:
    """The draws with one number of shots: `draw(index)` is the task of one of them."""

    shots: str | None
    names: tuple[str, ...]
    """Of the draws, in order."""
    rows: Sequence[Row]
    """That belong to this number of shots."""
    train: str
    max_queries: int | None
    name_template: str | None = None
    """Of the text that stands for a class as one more training row; None: names are not used."""

    def __len__(self) -> int:
        return len(self.names)

    def draw(self, index: int) -> Task:
        """Draw number `index`. Classes are numbered by name; a query of a class without training rows is left out."""
        support, query, _ = self._halves(self.names[index])
        classes = sorted({row.label for row in support})
        numbers = {name: number for number, name in enumerate(classes)}

        def examples(rows: Sequence[Row]) -> tuple[Example, ...]:
            return tuple(
                Example(row.name, numbers[row.label], row.texts[0], (), -1, row.texts[1] if row.texts[1:] else None)
                for row in rows
            )

        names = [
            Example(f"name:{name}", number, name_text(self.name_template, name), (), -1)
            for name, number in numbers.items()
            if self.name_template
        ]
        return Task(index, "test", tuple(classes), (*examples(support), *names), examples(query))

    @cached_property
    def k_shot(self) -> int | list[int]:
        """Training rows of a class: of all classes and draws, or the fewest and the most."""
        counts = [
            count for name in self.names for count in Counter(row.label for row in self._halves(name)[0]).values()
        ]
        return min(counts) if min(counts) == max(counts) else [min(counts), max(counts)]

    @cached_property
    def n_way(self) -> int | list[int]:
        """Classes: of all draws, or the fewest and the most."""
        counts = [len({row.label for row in self._halves(name)[0]}) for name in self.names]
        return min(counts) if min(counts) == max(counts) else [min(counts), max(counts)]

    query_per_class = None
    """It is the rows that are given."""

    @cached_property
    def queries(self) -> int | list[int]:
        """Test rows of a draw."""
        counts = [len(self._halves(name)[1]) for name in self.names]
        return min(counts) if min(counts) == max(counts) else [min(counts), max(counts)]

    def remarks(self) -> Iterator[str]:
        """A line for each thing about the draws that a user should know."""
        shots = "" if self.shots is None else f" of {self.shots} shots"
        shared = total = 0
        for name in self.names:
            support, query, left_out = self._halves(name)
            if left_out:
                labels = Counter(row.label for row in left_out)
                told = ", ".join(f"{count} of {shown(label)}" for label, count in labels.items())
                yield f"draw {name}{shots}: test rows of classes without a training row are left out: {told}"
            trained = {row.texts for row in support}
            shared += sum(row.texts in trained for row in query)
            total += len(query)
        if shared:
            yield f"{shared} of {total} test rows{shots} are among the training rows of the same draw, to the character"

    def check(self) -> None:
        """Raises UserError where a draw has no task in it."""
        shots = "" if self.shots is None else f" of {self.shots} shots"
        for name in self.names:
            support, query, _ = self._halves(name)
            classes = {row.label for row in support}
            if len(classes) < 2:
                raise UserError(
                    f"draw {name}{shots}: its training rows are of {len(classes)} classes; a task needs two"
                )
            if not query:
                raise UserError(f"draw {name}{shots}: it has no test rows")

    def _halves(self, name: str) -> tuple[list[Row], list[Row], list[Row]]:
        """Training rows, test rows, and the test rows of classes that have no training row."""
        own = [row for row in self.rows if row.draw in (None, name)]
        support = [row for row in own if row.part == self.train]
        classes = {row.label for row in support}
        tested = [row for row in own if row.part != self.train][: self.max_queries]
        return (
            support,
            [row for row in tested if row.label in classes],
            [row for row in tested if row.label not in classes],
        )


def read_given(
    dataset: Dataset,
    columns: Columns,
    corpus: CorpusConfig,
    work: Path,
    executor: Executor,
    *,
    train_part: str | None = None,
    max_queries: int | None = None,
    name_template: str | None = None,
) -> list[GivenDraws]:
    """The draws in a file, of each number of shots by its size. No row is left out as a repeat.

    Raises:
        UserError: a column is not there, it is not clear what is trained on, or a draw has no task in it.
    """
    names = [dataset.label_column, columns.part, columns.draw, columns.shots]
    asked = [name for name in names if name is not None]
    values = _columns(dataset, asked, corpus, work, executor)
    labels = values[asked[0]]
    parts = values[columns.part]
    train = _train_part(columns.part, [value for _, value in parts.values()], train_part)

    def value(name: str | None, row: str) -> str | None:
        return values[name][row][1] if name is not None and row in values[name] else None

    rows = [
        Row(row, texts, label, parts[row][1], value(columns.draw, row), value(columns.shots, row))
        for row, (texts, label) in labels.items()
        if row in parts
    ]
    sizes: list[str] = sorted({row.shots for row in rows if row.shots is not None}, key=_in_order)
    found = []
    for shots in sizes or (None,):
        own = [row for row in rows if row.shots in (None, shots)]
        draws = sorted({row.draw for row in own if row.draw is not None and row.part == train}, key=_in_order)
        given = GivenDraws(shots, tuple(draws) or ("0",), own, train, max_queries, name_template)
        given.check()
        found.append(given)
    return found


def _columns(
    dataset: Dataset, names: Sequence[str], corpus: CorpusConfig, work: Path, executor: Executor
) -> dict[str, dict[str, tuple[tuple[str, ...], str]]]:
    """By column, of each row that has a value there: its texts and that value. A reader reads a text and one value, so
    the file is read once a column."""
    datasets = [replace(dataset, label_column=name) for name in names]
    read = read_rows(find_rows(datasets, corpus, work, executor), work, executor)
    values: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {}
    for name, rows in zip(names, read, strict=True):
        values[name] = {}
        for part in rows.parts:
            for file in sorted(part.folder.glob("*.parquet")):
                table = read_parquet(file, ["document", "sentences", "label"])
                for row, texts, value in zip(*(column.to_pylist() for column in table.columns), strict=True):
                    values[name][row] = (tuple(texts), value)
        if not values[name]:
            problems = [problem for report in rows.report() for problem in report.problems]
            raise UserError(f"{dataset.sources[0].path}: {problems[0] if problems else f'no row has {name!r}'}")
    return values


def _train_part(column: str, values: Sequence[str], wanted: str | None) -> str:
    found = Counter(values)
    told = ", ".join(f"{shown(value)} ({count} rows)" for value, count in found.most_common(5))
    if wanted is not None:
        if wanted not in found:
            raise UserError(f"--train-part {wanted}: no row has it in the column {column!r}, which has {told}")
        names = [wanted]
    else:
        names = [value for value in found if value.lower() in TRAIN]
    if len(names) != 1:
        raise UserError(f"--part-column {column}: which rows are trained on? It has {told}: give --train-part VALUE")
    if len(found) == 1:
        raise UserError(f"--part-column {column}: all rows have {told}, so that there is nothing to test on")
    return names[0]


def _in_order(value: str) -> tuple[int, str]:
    return (int(value), "") if value.isdecimal() else (1 << 62, value)
