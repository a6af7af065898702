"""Where what W&B has recorded of runs is: their web address, or the files and the command that uploads them."""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distmeta.files import write_json
from distmeta.store.folders import address_of

UNSENT = ".wandb.unsent"


def wandb_lines(run_dirs: Sequence[Path]) -> list[str]:
    """A line for the address of one run, or of all of a sweep, and those of `upload_lines`; nothing where nothing was
    recorded."""
    addresses = [state["url"] for run_dir in run_dirs if (state := _state(run_dir)) and state.get("url")]
    lines = []
    if len(addresses) == 1:
        lines.append(f"W&B: {addresses[0]}")
    elif addresses:
        lines.append(f"W&B: {len(addresses)} runs at {addresses[0].rpartition('/runs/')[0]}")
    return lines + upload_lines(run_dirs)


def upload_lines(run_dirs: Sequence[Path]) -> list[str]:
    """A line for the files that are still to be uploaded of one run, or of all of a sweep; of one run also what shows
    them in the terminal.

    Files that `wandb sync` has uploaded count no more, and of those of an online run only what its server has not
    taken.
    """
    parts = [(run_dir, folder) for run_dir in run_dirs for folder in _to_upload(run_dir, _state(run_dir))]
    if not parts:
        return []
    is_rest = any(not folder.name.startswith("offline-") for _, folder in parts)
    what = "what the server has not taken is" if is_rest else "recorded offline"
    sync = "wandb sync --include-online" if is_rest else "wandb sync"
    if address := address_of(run_dirs[0]):
        where = address if len(run_dirs) == 1 else f"{address.rpartition('/')[0]}/*"
        pattern = "*run-*" if is_rest else "offline-run-*"
        return [f"W&B: {what} at {where}/wandb; on a disk that it is copied to: {sync} {pattern}"]
    folders = [shlex.quote(str(folder)) for _, folder in parts]
    if len(run_dirs) > 1 and not is_rest and all(folder.is_relative_to(run_dir) for run_dir, folder in parts):
        folders = [f"{shlex.quote(str(run_dirs[0].parent))}/*/wandb/offline-run-*"]
    where = str(parts[0][1].parent) if len(parts) == 1 or len(run_dirs) == 1 else f"{len(parts)} folders"
    lines = [f"W&B: {what} in {where}; this uploads it: {sync} {' '.join(folders)}"]
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


def mark_unsent(folder: Path) -> None:
    """Notes that a server has not taken all of an online run, whose files are in a folder: beside them, as W&B notes
    that it has uploaded them."""
    for file in folder.glob("*.wandb"):
        file.with_suffix(UNSENT).touch()


def unsent_marks(base: Path, run_id: str) -> list[Path]:
    """The files that note it, of a run whose files are under `base`."""
    return sorted(base.glob(f"wandb/run-*-{run_id}/*{UNSENT}"))


def _to_upload(run_dir: Path, state: dict[str, Any]) -> Iterator[Path]:
    if "run_id" not in state:
        return
    base, run_id = Path(state.get("directory") or run_dir), state["run_id"]
    offline = base.glob(f"wandb/offline-run-*-{run_id}")
    unsent = (mark.parent for mark in unsent_marks(base, run_id))
    for folder in sorted({*offline, *unsent}, key=lambda folder: folder.name.removeprefix("offline-")):
        if not any(folder.glob("*.wandb.synced")):
            yield folder
