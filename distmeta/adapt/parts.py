"""Predictions for tables too large for one process: a part at a time, by whatever executes the parts.

A part is a run of rows of one file, and a file of the output; those that are there are not made again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from distmeta.adapt.classifier import Classifier
from distmeta.adapt.command import Columns, write_predictions
from distmeta.adapt.rows import Table
from distmeta.corpus.executor import Executor
from distmeta.corpus.parts import digest, file_digest
from distmeta.engine.precision import Precision
from distmeta.errors import UserError
from distmeta.files import write_json
from distmeta.models.description import FILE

Say = Callable[[str], None]

PART_ROWS = 20_000
ASKED = "asked.json"
"""What the parts in a folder are of."""


@dataclass(frozen=True)
class Part:
    """Some rows of a file, and where their predictions go."""

    directory: str
    file: str
    first: int
    """Number of the first row, from 0."""
    rows: int
    output: str
    format: str
    columns: Columns
    abstain_below: float
    precision: Precision


def predict_parts(
    executor: Executor,
    directory: Path,
    files: Sequence[Path],
    output: Path,
    columns: Columns,
    *,
    format: str,
    abstain_below: float,
    say: Say,
    precision: Precision = "fp32",
) -> None:
    """Writes to the folder `output` a file for each part of each table, in the order of the rows by their names.

    Raises:
        UserError: no classifier is there, a table cannot be read, or the folder has parts of something else.
    """
    Classifier.load(directory)  # told now, if there is none
    _claim(output, directory, files, columns, format, abstain_below, precision)
    parts = []
    for number, file in enumerate(files):
        count = _rows_of(file, columns, say)
        for first in range(0, count, PART_ROWS):
            name = f"{number:05}-{file.name.split('.')[0]}-{first // PART_ROWS:06}.{format}"
            rows = min(PART_ROWS, count - first)
            place = str(output / name)
            parts.append(Part(str(directory), str(file), first, rows, place, format, columns, abstain_below, precision))
    left = [part for part in parts if not Path(part.output).exists()]
    if len(left) < len(parts):
        say(f"{len(parts) - len(left)} of {len(parts)} parts are there already")
    done = sum(executor.map(_predict, left, "predicting"))
    say(f"{done} rows in {len(left)} parts, {sum(part.rows for part in parts)} rows in all; in {output}")


def _claim(
    output: Path,
    directory: Path,
    files: Sequence[Path],
    columns: Columns,
    format: str,
    abstain_below: float,
    precision: Precision,
) -> None:
    of_classifier = sorted([*directory.rglob("*.safetensors"), directory / FILE])
    asked = {
        "classifier": digest([file_digest(path) for path in of_classifier]),
        "files": [[str(file), file_digest(file)] for file in files],
        "columns": asdict(columns),
        "format": format,
        "abstain_below": abstain_below,
        "precision": precision,
    }
    file = output / ASKED
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if changed := [key for key in asked if asked[key] != before.get(key)]:
            raise UserError(f"--output {output}: it has the parts of another call ({', '.join(changed)}); give another")
    elif output.exists() and any(output.iterdir()):
        raise UserError(f"--output {output}: something else is there; give another folder")
    write_json(file, asked)


def _rows_of(file: Path, columns: Columns, say: Say) -> int:
    table = Table(file, columns.encoding)
    table.need(columns.names)
    count = sum(1 for _ in table.rows())
    for line in table.left_out:
        say(f"{file}: left out, since it cannot be read: {line}")
    return count


@lru_cache(maxsize=1)
def _classifier(directory: str, precision: Precision) -> Classifier:
    """A process that does several parts loads it once."""
    return Classifier.load(directory, precision=precision)


def _predict(part: Part) -> int:
    """How many rows were written."""
    table = Table(Path(part.file), part.columns.encoding)
    rows = islice(table.rows(), part.first, part.first + part.rows)
    classifier = _classifier(part.directory, part.precision)
    counts = write_predictions(
        classifier, table, rows, Path(part.output), part.format, part.columns, part.abstain_below
    )
    return counts.rows
