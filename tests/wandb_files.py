"""Reading back what an offline W&B run has on disk."""

import json
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from distmeta.tracking.wandb_file import records, rows


def offline_records(run_dir: Path) -> list[Record]:
    """Of all parts of an offline run, in the order in which they were started."""
    return [record for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")) for record in records(file)]


def summary_of(found: list[Record]) -> dict[str, Any]:
    """The values of the summary, by name; of those that are set several times the last."""
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in found
        if record.HasField("summary")
        for item in record.summary.update
    }


def logged_steps(found: list[Record]) -> list[int]:
    return [row["outer_step"] for row in rows(iter(found))]


def read_media(run_dir: Path, value: dict[str, Any]) -> str:
    """The file that a value of the summary names."""
    (file,) = run_dir.glob(f"wandb/offline-run-*/files/{value['path']}")
    return file.read_text(encoding="utf-8")
