"""Drawing text for language modelling: sequence number `index` is a function of (seed, index) alone, as with tasks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from distmeta.tasks.draw import generator


class TextSource:
    """Draws segments of documents, each once an epoch, in an order that is new in every epoch.

    The order goes part by part, so that however large the corpus, one part is in memory at a time and neighbouring
    indices stand in the same part.

    Args:
        parts: Parquet files with a column `input_ids`, and how many rows each has.
        seed: with the index it decides the segment.
    """

    def __init__(self, parts: Sequence[tuple[Path, int]], seed: int) -> None:
        self._paths = [path for path, rows in parts if rows]
        self._rows = np.array([rows for _, rows in parts if rows], dtype=np.int64)
        self._seed = seed
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None  # number, order of the parts, where each ends
        self._part: tuple[tuple[int, int], np.ndarray, list[list[int]]] | None = None  # (epoch, part), order, rows

    def __len__(self) -> int:
        return int(self._rows.sum())

    def draw(self, index: int) -> list[int]:
        """Token ids, without special tokens, of segment number `index` (which may run over many epochs)."""
        epoch, position = divmod(index, len(self))
        if self._epoch is None or self._epoch[0] != epoch:
            order = generator(self._seed, "text", epoch).permutation(len(self._paths))
            self._epoch = (epoch, order, np.cumsum(self._rows[order]))
        _, order, ends = self._epoch
        place = int(np.searchsorted(ends, position, side="right"))
        part = int(order[place])
        if self._part is None or self._part[0] != (epoch, part):
            rows = pq.read_table(self._paths[part], columns=["input_ids"])["input_ids"].to_pylist()
            self._part = ((epoch, part), generator(self._seed, "text", epoch, part).permutation(len(rows)), rows)
        _, shuffled, rows = self._part
        return rows[shuffled[position - int(ends[place] - self._rows[part])]]
