"""Which rows of a corpus repeat an earlier one, found over the whole of it with bounded memory.

Every shard keeps a table of its rows' hashes, sorted. A unit of work takes one range of hashes from every shard, so
that all rows that could be the same meet in one unit, whatever shard they are in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distmeta.corpus.executor import Executor, map_groups
from distmeta.corpus.parts import Part, load_list, make_part, save_list
from distmeta.corpus.tables import bucket_ranges, read_range, write_sorted

ROWS_PER_UNIT = 1_000_000
TABLE = "repeated.arrow"


@dataclass(frozen=True, slots=True)
class RepeatsUnit:
    """A range of hashes over the tables of all shards."""

    step: Path
    tables: str
    """The list of the shards' tables, as `save_list` names it."""
    low: int
    high: int


def find_repeats(
    step: Path, datasets: Sequence[tuple[Sequence[Path], int]], executor: Executor, description: str
) -> list[list[Part]]:
    """Find the rows of each data set, given as its tables and how many rows they have, that repeat an earlier one.

    A table is sorted and has `key` and `row`; where it has `exact` too, rows are the same if both hashes are, and where
    it has `label`, texts (keys) under two labels are counted. The parts hold `repeated.arrow`, sorted by shard number
    (`key`), with `row`; their summaries `repeats` and `under_two_labels`.
    """
    work = step.parent
    groups = []
    for tables, rows in datasets:
        listing = save_list(work / "lists", [str(table.relative_to(work)) for table in tables])
        groups.append([RepeatsUnit(step, listing, low, high) for low, high in bucket_ranges(rows, ROWS_PER_UNIT)])
    return map_groups(executor, _find_in_range, groups, description)


def repeated_rows(parts: Sequence[Path], shard: int) -> np.ndarray:
    """Return the sorted row numbers of a shard that repeat an earlier row."""
    found = [read_range(folder / TABLE, shard, shard + 1)["row"].to_numpy() for folder in parts]
    rows: np.ndarray = np.sort(np.concatenate(found))
    return rows


def _find_in_range(unit: RepeatsUnit) -> Part:
    work = unit.step.parent
    identity = [unit.tables, str(unit.low), str(unit.high)]
    return make_part(
        unit.step, identity, lambda folder: _write_repeats(unit, load_list(work / "lists", unit.tables), folder)
    )


def _write_repeats(unit: RepeatsUnit, tables: list[str], folder: Path) -> dict[str, Any]:
    ranges = [read_range(unit.step.parent / table, unit.low, unit.high) for table in tables]
    shard = np.repeat(np.arange(len(ranges), dtype=np.uint64), [len(each) for each in ranges])
    rows = pa.concat_tables(ranges)
    columns = {name: rows[name].to_numpy() for name in rows.column_names}
    identity = [columns[name] for name in ("key", "exact") if name in columns]
    order = np.lexsort((columns["row"], shard, *reversed(identity)))
    same = np.ones(max(len(order) - 1, 0), bool)
    for hashes in identity:
        same &= hashes[order[1:]] == hashes[order[:-1]]
    repeated = order[1:][same]
    repeated = repeated[np.lexsort((columns["row"][repeated], shard[repeated]))]
    write_sorted({"key": shard[repeated], "row": columns["row"][repeated]}, folder / TABLE)
    summary = {"repeats": len(repeated)}
    if "label" in columns:
        keys_and_labels = np.unique(np.stack([columns["key"], columns["label"]], axis=1), axis=0)
        _, labels = np.unique(keys_and_labels[:, 0], return_counts=True)
        summary["under_two_labels"] = int((labels > 1).sum())
    return summary
