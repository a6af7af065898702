"""Shards: the cleaned records that later steps read, with those left out that repeat an earlier one."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from distmeta.corpus.parts import load_list, read_parquet
from distmeta.corpus.repeats import repeated_rows


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of records, by its place in the order of its data set."""

    work: Path
    number: int
    file: str
    """Its records (`ingest.SCHEMA`), below `work`."""
    repeats: str | None
    """The list of the parts that say which records repeat an earlier one; None: all are kept."""

    def read(self) -> pa.Table:
        """Return the records that are kept, in order."""
        table = read_parquet(self.work / self.file)
        dropped = self._dropped()
        if not len(dropped):
            return table
        kept = np.ones(len(table), bool)
        kept[dropped] = False
        return table.filter(pa.array(kept))

    def identity(self) -> list[str]:
        """What determines the records that `read` returns."""
        return [self.file, hashlib.blake2b(self._dropped().tobytes(), digest_size=16).hexdigest()]

    def _dropped(self) -> np.ndarray:
        if self.repeats is None:
            return np.empty(0, np.uint32)
        return repeated_rows([self.work / part for part in load_list(self.work / "lists", self.repeats)], self.number)
