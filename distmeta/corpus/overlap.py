"""Which of some texts stand among others, by the hashes that are kept of them. The others may be any number."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmeta.store.folders import present

MEASURES = {"exact_key": "", "near_key": "_near"}
"""Columns of hashes of texts, and what is put behind the name of a number that is counted by them."""


class Texts:
    """The hashes of texts in files, of each text that is different to the character once."""

    def __init__(self, parts: Iterable[Path]) -> None:
        tables = [pq.read_table(present(part), columns=[*MEASURES]) for part in parts]
        columns = {
            name: np.concatenate([np.empty(0, np.int64), *(table[name] for table in tables)]) for name in MEASURES
        }
        exact, first = np.unique(columns["exact_key"], return_index=True)
        self._keys = {"exact_key": exact, "near_key": columns["near_key"][first]}

    def __len__(self) -> int:
        return len(self._keys["exact_key"])

    def found_in(self, others: pa.Table) -> np.ndarray:
        """Return which of the texts stand among others, given by their hashes: a row a measure."""
        return np.stack([np.isin(keys, others[measure].to_numpy()) for measure, keys in self._keys.items()])


def count_each(texts: Sequence[Texts], parts: Iterable[Path]) -> list[dict[str, int]]:
    """Return how many of each of the texts stand in files of others, by measure. One file is read at a time."""
    found = [np.zeros((len(MEASURES), len(each)), bool) for each in texts]
    for part in parts if texts else ():
        others = pq.read_table(present(part), columns=[*MEASURES])
        for each, own in zip(texts, found, strict=True):
            own |= each.found_in(others)
    return [dict(zip(MEASURES, own.sum(axis=1).tolist(), strict=True)) for own in found]


def has_hashes(parts: Iterable[Path]) -> bool:
    """Whether hashes of texts are kept in all of the files: earlier versions kept none."""
    return all({*MEASURES} <= {*pq.read_schema(part).names} for part in parts)
