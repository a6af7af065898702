"""`distmeta adapt` and `distmeta predict`."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distmeta.adapt.account import account
from distmeta.adapt.choose import Choice
from distmeta.adapt.classifier import TEXTS_AT_A_TIME, Classifier
from distmeta.adapt.examples import read_examples
from distmeta.adapt.files import ACCOUNT
from distmeta.adapt.rows import WRITTEN, Row, Table, format_of, writer
from distmeta.adapt.saved import check_output
from distmeta.adapt.words import warning
from distmeta.corpus.records import is_blank
from distmeta.engine.precision import Precision
from distmeta.errors import UserError
from distmeta.files import write_json

Say = Callable[[str], None]

SAID_EVERY = 10.0
"""Seconds between two lines of progress."""
LABEL, PROBABILITY = "label", "probability"
"""The columns that a prediction adds; see `free_name`."""


@dataclass(frozen=True)
class Columns:
    """Where the texts stand in a table, and how it is encoded."""

    text: str
    pair: str | None = None
    encoding: str | None = None
    """Any of Python's; None: UTF-8, or what a mark at the beginning says."""

    @property
    def names(self) -> list[str]:
        """Those of one or two texts."""
        return [self.text] if self.pair is None else [self.text, self.pair]


def adapt(
    model: str,
    examples: str,
    output: Path,
    columns: Columns,
    label_column: str,
    *,
    method: str,
    seconds: float,
    class_names: bool,
    queries_together: bool,
    say: Say,
) -> Iterator[str]:
    """Makes a classifier of a network and the examples in a file, and keeps it in a folder. Yields what came of it.

    Raises:
        UserError: something cannot be read, or cannot be done with these examples.
    """
    check_output(output)
    found = read_examples(examples, columns.text, label_column, columns.pair, say, columns.encoding)
    started = time.monotonic()
    classifier = Classifier(
        model, method=method, seconds=seconds, class_names=class_names, queries_together=queries_together
    ).fit(found.texts, found.labels)
    took = time.monotonic() - started
    numbers = np.searchsorted(classifier.classes_, found.labels)
    counts = np.bincount(numbers)
    yield (
        f"{len(found.texts)} examples of {len(counts)} classes, {counts.min()} to {counts.max()} of each; "
        f"{took:.1f} s with loading"
    )
    yield from _table(classifier.choice_, numbers)
    choice = classifier.choice_
    if choice.left_out:
        yield f"  not tried, for want of time: {', '.join(choice.left_out)}; --seconds gives more than {seconds:g}"
    yield f"taken: {choice.network} {choice.method}: {choice.why}"
    if choice.own:
        if told := warning(found.texts, numbers, len(counts), choice.own, classifier.seed):
            yield told
    else:
        yield "probabilities are not calibrated: that takes two examples of a class"
    folder = classifier.save(output)
    about = account(classifier.trials_, choice, classifier.temperature_, found.texts, found.labels)
    write_json(folder / ACCOUNT, about)
    yield f"kept in {folder}; `distmeta report {folder}` makes a page of what was seen"


def _table(choice: Choice, labels: np.ndarray) -> Iterator[str]:
    """What was tried, the best first."""
    rows = sorted(choice.tried, key=lambda each: -each.accuracy(labels))
    width = max((len(f"{each.network} {each.method}") for each in rows), default=0)
    for each in rows:
        name = f"{each.network} {each.method}"
        yield f"  {name:{width}}  {each.accuracy(labels):6.1%} in cross-validation, {each.seconds:.2f} s a fit"


def predict(
    directory: Path,
    file: Path,
    output: Path | None,
    columns: Columns,
    *,
    abstain_below: float,
    say: Say,
    precision: Precision = "fp32",
) -> None:
    """Writes the rows of a table with the label and the probability of each, in constant memory.

    Raises:
        UserError: no classifier is there, or the table cannot be read as one with these columns.
    """
    table = Table(file, columns.encoding)
    table.need(columns.names)
    if output is not None:
        format = format_of(output, WRITTEN, "--output")
    else:
        format = "jsonl" if table.format in ("jsonl", "parquet") else "csv"
    classifier = Classifier.load(directory, precision=precision)
    if classifier.reads_pairs_ != (columns.pair is not None):
        wanted = "give --text-pair-column" if classifier.reads_pairs_ else "leave --text-pair-column out"
        raise UserError(
            f"--text-column: {directory} reads {'pairs' if classifier.reads_pairs_ else 'single texts'}: {wanted}"
        )
    started = time.monotonic()
    counts = write_predictions(classifier, table, table.rows(), output, format, columns, abstain_below, say)
    seconds = time.monotonic() - started
    say(f"{counts.rows} rows in {seconds:.1f} s, {counts.rows / max(seconds, 1e-9):.0f} a second")
    if counts.unsure:
        say(f"{counts.unsure} rows have no label: the probability is below {abstain_below:g}")
    if counts.without_text:
        say(f"{counts.without_text} rows have no text in {' and '.join(map(repr, columns.names))}, and no label")
    for line in table.left_out:
        say(f"left out, since it cannot be read: {line}")


@dataclass
class Counts:
    """What became of the rows of a table."""

    rows: int = 0
    unsure: int = 0
    """Without a label, since its probability is too low."""
    without_text: int = 0


def write_predictions(
    classifier: Classifier,
    table: Table,
    rows: Iterator[Row],
    output: Path | None,
    format: str,
    columns: Columns,
    abstain_below: float,
    say: Say = lambda text: None,
) -> Counts:
    """Writes rows of a table with what is predicted of them, a bounded number at a time."""
    label, probability = (free_name(name, table.columns) for name in (LABEL, PROBABILITY))
    types = pa.schema([*table.types, (label, pa.array(classifier.classes_).type), (probability, pa.float64())])
    started = said = time.monotonic()
    counts = Counts()
    with writer(output, format, [*table.columns, label, probability], types) as write:
        while some := list(islice(rows, TEXTS_AT_A_TIME)):
            for row in some:
                if taken := row.keys() & {label, probability}:
                    raise UserError(
                        f"{table.path}: a row has {min(taken)!r}, which the first has not, and so the prediction would "
                        "take its place: give the first row one as well (null will do)"
                    )
            found = predictions(classifier, some, columns.names, abstain_below)
            write([row | {label: one, probability: two} for row, (one, two) in zip(some, found, strict=True)])
            counts.rows += len(some)
            counts.without_text += sum(two is None for _, two in found)
            counts.unsure += sum(one is None and two is not None for one, two in found)
            if time.monotonic() - said > SAID_EVERY:
                said = time.monotonic()
                say(f"{counts.rows} rows, {counts.rows / (said - started):.0f} a second")
    return counts


def free_name(name: str, columns: Sequence[str]) -> str:
    """A name for another column of a table: this one, with `predicted_` before it as often as it is taken."""
    while name in columns:
        name = f"predicted_{name}"
    return name


def predictions(
    classifier: Classifier, rows: Sequence[Row], columns: Sequence[str], abstain_below: float = 0.0
) -> list[tuple[Any, float | None]]:
    """Label and probability of each row; no label where the probability is too low, and neither without a text."""
    texts = [tuple(str(row[name]) for name in columns) if _has(row, columns) else None for row in rows]
    known = [text for text in texts if text is not None]
    found = iter(classifier.predict_proba(known)) if known else iter(())
    made: list[tuple[Any, float | None]] = []
    for text in texts:
        if text is None:
            made.append((None, None))
            continue
        scores = next(found)
        best = int(scores.argmax())
        label = classifier.classes_[best].item() if scores[best] >= abstain_below else None
        made.append((label, round(float(scores[best]), 6)))
    return made


def _has(row: Row, columns: Sequence[str]) -> bool:
    return all(row.get(name) is not None and not is_blank(str(row[name])) for name in columns)
