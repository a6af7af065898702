"""Reading back what an offline W&B run has on disk."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]


def records(run_file: Path) -> Iterator[Record]:
    """The records of a .wandb file: a log in LevelDB's format, of blocks of 32 KiB that hold chunks of records."""
    data = run_file.read_bytes()
    position, record = 7, b""  # behind the file's own header
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last chunk of one
            yield Record.FromString(record)
            record = b""


def offline_records(run_dir: Path) -> list[Record]:
    """Of all parts of an offline run, in the order in which they were started."""
    return [record for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")) for record in records(file)]


def history(found: list[Record]) -> list[dict[str, Any]]:
    return [
        {
            item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in found
        if record.HasField("history")
    ]


def logged_steps(found: list[Record]) -> list[int]:
    return [row["outer_step"] for row in history(found)]
