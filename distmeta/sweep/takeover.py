"""How a trial takes over another one's network, for population based training: weights, optimizer states and the best
network so far move; what the trial has cost stays its own."""

import json
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.fs

from distmeta.config import Config
from distmeta.engine.checkpoint import MANIFEST, PREFIX, read_checkpoint, write_checkpoint
from distmeta.rundir import RunDirectory
from distmeta.sweep.directory import read_trial, write_trial
from distmeta.train.events import note
from distmeta.train.storage import CHECKPOINTS, newest_checkpoint, storage_path

OWN = (
    "wall_seconds",
    "worker_seconds",
    "tokens",
    "lm_tokens",
    "flops",
    "phase_seconds",
    "startup_seconds",
    "peak_memory_bytes",
)
"""What of a run's progress says what it has cost."""

PATIENCE = 600.0
"""Seconds in which a checkpoint has to be in storage after the validation of its step was reported: it is stored beside
the step after that, and counts at the end of it."""


def copy_newest(config: Config, run: RunDirectory, trial_id: str, outer_step: int, directory: Path) -> None:
    """Copies a trial's newest checkpoint, of `outer_step` or later, with a note of whose it is.

    Raises:
        TimeoutError: there is no such checkpoint.
    """
    deadline = time.monotonic() + PATIENCE
    while (found := _newest(config, run)) is None or found[2]["outer_step"] < outer_step:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{run.path}: no checkpoint of outer step {outer_step} or later")
        time.sleep(0.2)
    filesystem, path, _ = found
    (directory / "checkpoint").mkdir(parents=True)
    pyarrow.fs.copy_files(str(path), str(directory / "checkpoint"), source_filesystem=filesystem)
    (directory / "origin.json").write_text(json.dumps({"trial_id": trial_id, "copy": secrets.token_hex(8)}))


def take_over(config: Config, run: RunDirectory, trial_id: str, directory: Path) -> None:
    """Makes another trial's checkpoint, as `copy_newest` left it, the only one of this run.

    Nothing happens where the copy is the trial's own, or has been taken over before an interruption: the run then goes
    on from its own newest checkpoint.
    """
    origin = json.loads((directory / "origin.json").read_text())
    trial = read_trial(run)
    if origin["trial_id"] == trial_id or trial.get("adopted") == origin["copy"]:
        return
    state, progress, extra = read_checkpoint(directory / "checkpoint")
    own = _newest(config, run)
    spent = own[2] if own else {}
    progress = {key: value for key, value in progress.items() if key not in OWN}
    progress |= {key: spent[key] for key in OWN if key in spent}
    filesystem, path = pyarrow.fs.FileSystem.from_uri(storage_path(config, run))
    with tempfile.TemporaryDirectory(prefix="distmeta-takeover-") as scratch:
        write_checkpoint(Path(scratch), state, progress, extra)
        before = filesystem.get_file_info(pyarrow.fs.FileSelector(f"{path}/{CHECKPOINTS}", allow_not_found=True))
        name = f"{PREFIX}{progress['outer_step']:08d}-{secrets.token_hex(3)}"
        filesystem.create_dir(f"{path}/{CHECKPOINTS}/{name}")
        pyarrow.fs.copy_files(scratch, f"{path}/{CHECKPOINTS}/{name}", destination_filesystem=filesystem)
    for folder in before:  # only now, so that an interruption leaves the trial something to go on from
        if folder.base_name.startswith(PREFIX):
            filesystem.delete_dir(folder.path)
    write_trial(run, trial | {"adopted": origin["copy"]})
    note(run.events, 0, f"took over trial {origin['trial_id']} as it was at outer step {progress['outer_step']}")


def _newest(config: Config, run: RunDirectory) -> tuple[pyarrow.fs.FileSystem, Path, dict[str, Any]] | None:
    found = newest_checkpoint(config, run)
    if found is None:
        return None
    filesystem, path = found
    with filesystem.open_input_stream(f"{path}/{MANIFEST}") as stream:
        return filesystem, path, json.loads(stream.read())["progress"]
