"""Reading back what an offline W&B run has on disk."""

from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from distmeta.tracking.wandb_file import records, rows


def offline_records(run_dir: Path) -> list[Record]:
    """Of all parts of an offline run, in the order in which they were started."""
    return [record for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")) for record in records(file)]


def logged_steps(found: list[Record]) -> list[int]:
    return [row["outer_step"] for row in rows(iter(found))]
