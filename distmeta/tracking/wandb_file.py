"""What W&B's files on this disk hold."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
HEADER = 7
"""Bytes before the first block's first chunk, and before the content of each chunk."""


def records(run_file: Path) -> Iterator[Any]:
    """Yields the `Record`s of a .wandb file, up to one that was not written to its end.

    The file is a log in LevelDB's format (https://github.com/google/leveldb/blob/main/doc/log_format.md): blocks of
    32 KiB that hold chunks of records.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data = run_file.read_bytes()
    position, record = HEADER, b""
    while position + HEADER <= len(data):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < HEADER:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += HEADER + length
        if position > len(data):
            return
        record += data[position - length : position]
        if kind in (1, 4):  # a whole record, or the last chunk of one
            yield Record.FromString(record)
            record = b""


def rows(found: Iterator[Any]) -> Iterator[dict[str, Any]]:
    """Yields the logged rows among records."""
    for record in found:
        if record.HasField("history"):
            yield {
                item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
                for item in record.history.item
            }


def last_logged_step(run_dir: Path, pattern: str) -> int:
    """The largest `outer_step` in the run's .wandb files in folders of a pattern; -1 where there is none."""
    files = run_dir.glob(f"wandb/{pattern}/*.wandb")
    return max((row.get("outer_step", -1) for file in files for row in rows(records(file))), default=-1)
