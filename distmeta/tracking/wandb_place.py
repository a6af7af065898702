"""Where what W&B has recorded of runs is: their web address, or the files and the command that uploads them."""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distmeta.files import write_json
from distmeta.store.folders import address_of


def wandb_lines(run_dirs: Sequence[Path]) -> list[str]:
    """A line each for the address and for the files that are still to be uploaded of one run, or of all of a sweep; of
    one run also what shows them in the terminal.

    Nothing where nothing was recorded. Files that `wandb sync` has uploaded count no more.
    """
    states = [(run_dir, state) for run_dir in run_dirs if (state := _state(run_dir))]
    addresses = [state["url"] for _, state in states if state.get("url")]
    parts = [(run_dir, folder) for run_dir, state in states for folder in _to_upload(run_dir, state)]
    lines = []
    if len(addresses) == 1:
        lines.append(f"W&B: {addresses[0]}")
    elif addresses:
        lines.append(f"W&B: {len(addresses)} runs at {addresses[0].rpartition('/runs/')[0]}")
    if parts and (address := address_of(run_dirs[0])):
        where = address if len(run_dirs) == 1 else f"{address.rpartition('/')[0]}/*"
        lines.append(
            f"W&B: recorded offline at {where}/wandb; on a disk that it is copied to: wandb sync offline-run-*"
        )
    elif parts:
        folders = [shlex.quote(str(folder)) for _, folder in parts]
        if len(run_dirs) > 1 and all(folder.is_relative_to(run_dir) for run_dir, folder in parts):
            folders = [f"{shlex.quote(str(run_dirs[0].parent))}/*/wandb/offline-run-*"]
        where = str(parts[0][1].parent) if len(parts) == 1 or len(run_dirs) == 1 else f"{len(parts)} folders"
        lines.append(f"W&B: recorded offline in {where}; this uploads it: wandb sync {' '.join(folders)}")
        if len(run_dirs) == 1:
            lines.append(f"W&B: in the terminal: wandb leet {shlex.quote(str(parts[0][1].parent))}")
    return lines


def write_state(run_dir: Path, state: dict[str, Any]) -> None:
    """Keeps the id of a run (`run_id`), its tags (`tags`), its address (`url`) and where its files are, if elsewhere
    (`directory`)."""
    write_json(run_dir / "wandb.json", state)


def _state(run_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((run_dir / "wandb.json").read_text())
    except (OSError, ValueError):
        return {}


def _to_upload(run_dir: Path, state: dict[str, Any]) -> Iterator[Path]:
    base = Path(state.get("directory") or run_dir) / "wandb"
    for folder in sorted(base.glob(f"offline-run-*-{state['run_id']}")):
        if not any(folder.glob("*.wandb.synced")):
            yield folder
