"""Checkpoints: safetensors files and a manifest with their sizes and digests, good only if all of it is right.

They are written and read one tensor at a time: no process holds a checkpoint.

checkpoint_000120/
  weights.safetensors      the engine's state
  exp_avg.safetensors
  exp_avg_sq.safetensors
  extra-best.safetensors   whatever else the run keeps, e.g. its best network so far
  checkpoint.json          written last: format, progress of the run, and of each file its bytes and digest
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow.fs
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from distmeta.engine.state import EngineState
from distmeta.errors import UserError
from distmeta.tensors import LazyTensors, read_tensors, write_tensors

MANIFEST = "checkpoint.json"
PREFIX = "checkpoint_"
"""How the folder of a checkpoint is named; what follows is the run's to choose."""
STATE_FILES = ("weights", "exp_avg", "exp_avg_sq")

logger = logging.getLogger(__name__)


class FileRecord(BaseModel):
    """What a file has to be."""

    bytes: int
    blake2b: str


class Progress(BaseModel):
    """How far the run had come; what more it holds is the run's own."""

    model_config = ConfigDict(extra="allow")

    outer_step: int


class Manifest(BaseModel):
    """Content of `checkpoint.json`."""

    model_config = ConfigDict(strict=True)

    format: Literal[1] = 1
    step: int
    """Updates that the engine has applied."""
    progress: Progress
    files: dict[str, FileRecord]


class Damaged(Exception):
    """A checkpoint is not what its manifest says. The message names the file and the fault."""


def write_checkpoint(
    directory: Path,
    state: EngineState,
    progress: Mapping[str, Any],
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a checkpoint into `directory`, made if it is not there.

    `progress` is JSON and holds `outer_step`, by which the newest checkpoint is told. `extra` holds further tensors by
    the name of their file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Mapping[str, Tensor]] = {name: getattr(state, name) for name in STATE_FILES}
    tensors |= {f"extra-{name}": group for name, group in (extra or {}).items()}
    files = {}
    for name, group in tensors.items():
        path = directory / f"{name}.safetensors"
        write_tensors(path, group)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
        files[path.name] = FileRecord(bytes=path.stat().st_size, blake2b=digest)
    manifest = Manifest(step=state.step, progress=Progress(**progress), files=files)
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def read_checkpoint(directory: Path) -> tuple[EngineState, dict[str, Any], dict[str, LazyTensors]]:
    """The engine's state, the progress and the extra tensors of a checkpoint.

    Tensors are read, to the CPU, when they are asked for, so the checkpoint has to stay where it is.

    Raises UserError where it is not whole: damaged, half-written or of another format.
    """
    try:
        manifest = _verify(pyarrow.fs.LocalFileSystem(), str(directory))
    except Damaged as damage:
        raise UserError(f"checkpoint {directory} cannot be used: {damage}") from damage
    tensors = {Path(name).stem: read_tensors(directory / name) for name in manifest.files}
    state = EngineState(manifest.step, **{name: tensors.pop(name) for name in STATE_FILES})
    return (
        state,
        manifest.progress.model_dump(),
        {name.removeprefix("extra-"): group for name, group in tensors.items()},
    )


def newest_good(filesystem: pyarrow.fs.FileSystem, path: str) -> str | None:
    """Name of the whole checkpoint with the highest `outer_step` among those in the folder `path` of a storage.

    One that is not whole is left out with a warning that says what is wrong with it. None: there is no whole one.
    """
    folders = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
    outer_steps: dict[str, int] = {}
    for folder in folders:
        if folder.type == pyarrow.fs.FileType.Directory and folder.base_name.startswith(PREFIX):
            try:
                outer_steps[folder.base_name] = _read_manifest(filesystem, folder.path).progress.outer_step
            except Damaged as damage:
                logger.warning("checkpoint %s is left out: %s", folder.base_name, damage)
    for name in sorted(outer_steps, key=lambda name: outer_steps[name], reverse=True):
        try:
            _verify(filesystem, f"{path}/{name}")
            return name
        except Damaged as damage:
            logger.warning("checkpoint %s is left out, the one before is tried: %s", name, damage)
    return None


def fetch_checkpoint(filesystem: pyarrow.fs.FileSystem, path: str, directory: Path) -> Path:
    """The local folder that holds the checkpoint at `path` of a storage.

    It is `path` itself where the storage is local; else the checkpoint is copied into `directory`, made if need be.
    """
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    pyarrow.fs.copy_files(path, str(directory), source_filesystem=filesystem)
    return directory


def _read_manifest(filesystem: pyarrow.fs.FileSystem, path: str) -> Manifest:
    # Only what is wrong with a checkpoint is damage: a storage that cannot be reached must not start a run afresh.
    try:
        with filesystem.open_input_stream(f"{path}/{MANIFEST}") as stream:
            return Manifest.model_validate_json(stream.read())
    except FileNotFoundError as error:
        raise Damaged(f"it has no {MANIFEST}, so its writing was not finished") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([MANIFEST, *map(str, first["loc"])])
        raise Damaged(f"{where} is damaged or of another version: {first['msg']}") from error


def _verify(filesystem: pyarrow.fs.FileSystem, path: str) -> Manifest:
    """The manifest of a checkpoint whose every file is as it says; raises Damaged."""
    manifest = _read_manifest(filesystem, path)
    for name, record in manifest.files.items():
        file = filesystem.get_file_info(f"{path}/{name}")
        if file.type == pyarrow.fs.FileType.NotFound:
            raise Damaged(f"{name} is missing")
        if file.size != record.bytes:
            raise Damaged(f"{name} has {file.size} bytes, not {record.bytes}")
    for name, record in manifest.files.items():
        with filesystem.open_input_stream(f"{path}/{name}") as stream:
            if hashlib.file_digest(stream, hashlib.blake2b).hexdigest() != record.blake2b:
                raise Damaged(f"the content of {name} is not what was written")
    return manifest
