"""Tables on disk sorted by a 64-bit key, of which a range of keys is read without the rest: what bounds memory in every
step that has to bring together what belongs together.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from distmeta.store.folders import present

KEY = "key"
KEY_SPACE = 1 << 64


def write_sorted(columns: dict[str, pa.Array | np.ndarray], path: Path) -> None:
    """Write columns sorted by `key` (uint64; rows of one key keep their order) as an Arrow file."""
    table = pa.table(columns)
    order = np.argsort(table[KEY].to_numpy(), kind="stable")
    table = table.take(order).combine_chunks()
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table)))


def read_range(path: Path, low: int, high: int) -> pa.Table:
    """Return the rows with low <= key < high; only their pages are read."""
    table = pa.ipc.open_file(pa.memory_map(str(present(path)))).read_all()
    keys = table[KEY].to_numpy() if len(table) else np.empty(0, np.uint64)
    start = np.searchsorted(keys, np.uint64(low)) if low else 0
    stop = np.searchsorted(keys, np.uint64(high)) if high < KEY_SPACE else len(keys)
    return table.slice(start, stop - start)


def bucket_ranges(rows: int, rows_per_bucket: int) -> Iterator[tuple[int, int]]:
    """Yield ranges (low, high) that cut the key space so that uniform keys fall about `rows_per_bucket` into each."""
    buckets = max(1, -(-rows // rows_per_bucket))
    for bucket in range(buckets):
        yield bucket * KEY_SPACE // buckets, (bucket + 1) * KEY_SPACE // buckets
