"""Checkpoints: parts that each worker writes for itself, and a manifest with their sizes and digests, good only if all
of it is right.

They are written and read one tensor at a time: no process holds a checkpoint.

checkpoint_000120/
  part-00000.safetensors   the engine's state, in pieces: see `distmeta.engine.parts`
  part-00001.safetensors
  extra-best.safetensors   whatever else the run keeps, e.g. its best network so far
  checkpoint.json          written last: format, progress of the run, the shapes of the tensors, of each file its bytes
                           and digest, and a digest of all this

Those of format 1, which are read and no longer written, have weights.safetensors, exp_avg.safetensors and
exp_avg_sq.safetensors in the place of parts, no shapes, and no digest of the manifest.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow.fs
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from distmeta.engine.parts import GROUPS, Damaged, Pieces, find_pieces, put_together
from distmeta.engine.state import EngineState
from distmeta.errors import UserError
from distmeta.tensors import LazyTensors, outlines_of, read_tensors, written

MANIFEST = "checkpoint.json"
PREFIX = "checkpoint_"
"""How the folder of a checkpoint is named; what follows is the run's to choose."""
CHUNK = 2**24
"""Bytes that are written at a time."""

Groups = Mapping[str, Mapping[str, Tensor]]
"""Tensors by group and name."""

logger = logging.getLogger(__name__)


class FileRecord(BaseModel):
    """What a file has to be."""

    model_config = ConfigDict(strict=True)

    bytes: int
    blake2b: str


class Progress(BaseModel):
    """How far the run had come; what more it holds is the run's own."""

    model_config = ConfigDict(extra="allow", strict=True)

    outer_step: NonNegativeInt


FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*\.safetensors$")]


class Manifest(BaseModel):
    """Content of `checkpoint.json`."""

    model_config = ConfigDict(strict=True)

    format: Literal[1, 2] = 2
    step: NonNegativeInt
    """Updates that the engine has applied."""
    progress: Progress
    shapes: dict[str, dict[str, list[NonNegativeInt]]] = {}
    """Of the engine's tensors, by group and parameter name."""
    files: dict[FileName, FileRecord] = {}

    @property
    def parts(self) -> list[str]:
        """The names of the files with parts."""
        return [name for name in self.files if name.startswith("part-")]

    def written(self) -> bytes:
        """The content of the file."""
        content = json.loads(self.model_dump_json())
        return json.dumps(content | {"blake2b": _digest(content)}, indent=1).encode()


def part_name(rank: int) -> str:
    """The file of a worker's part."""
    return f"part-{rank:05d}.safetensors"


def shapes_of(state: EngineState) -> dict[str, dict[str, list[int]]]:
    """Those of a state's tensors, by group and parameter name; lazy ones are not made for that."""
    return {
        group: {name: list(outline.shape) for name, outline in outlines_of(getattr(state, group)).items()}
        for group in GROUPS
    }


def write_file(filesystem: pyarrow.fs.FileSystem, path: str, content: Iterable[bytes | memoryview]) -> FileRecord:
    """Write a file of a checkpoint; returns what its manifest has to say of it."""
    digest, size = hashlib.blake2b(), 0
    with filesystem.open_output_stream(path) as stream:
        for block in content:
            for start in range(0, len(block), CHUNK):
                chunk = block[start : start + CHUNK]
                digest.update(chunk)
                stream.write(chunk)
                size += len(chunk)
    return FileRecord(bytes=size, blake2b=digest.hexdigest())


def write_checkpoint(
    directory: Path, state: EngineState, progress: Mapping[str, Any], extra: Groups | None = None
) -> None:
    """Write a checkpoint of one part into `directory`, made if it is not there. The state's tensors are made in turn.

    `progress` is JSON and holds `outer_step`, by which the newest checkpoint is told. `extra` holds further tensors by
    the name of their file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, Mapping[str, Tensor]] = {part_name(0): _as_part(state)}
    files |= {f"extra-{name}.safetensors": group for name, group in (extra or {}).items()}
    local = pyarrow.fs.LocalFileSystem()
    records = {name: write_file(local, str(directory / name), written(tensors)) for name, tensors in files.items()}
    manifest = Manifest(step=state.step, progress=Progress(**progress), shapes=shapes_of(state), files=records)
    (directory / MANIFEST).write_bytes(manifest.written())


def _as_part(state: EngineState) -> LazyTensors:
    def make(key: str) -> Tensor:
        group, _, name = key.split("/", 2)
        return getattr(state, group)[name].reshape(-1)

    outlines = {
        f"{group}/0/{name}": torch.empty(outline.numel(), device="meta")
        for group in GROUPS
        for name, outline in outlines_of(getattr(state, group)).items()
    }
    return LazyTensors(outlines, make)


def read_checkpoint(
    directory: Path, *, has_digests_right: bool = False
) -> tuple[EngineState, dict[str, Any], dict[str, LazyTensors]]:
    """The engine's state, the progress and the extra tensors of a checkpoint.

    Tensors are read, to the CPU, when they are asked for, so the checkpoint has to stay where it is. One that
    `has_digests_right`, as was just seen, is not read as a whole.

    Raises UserError where it is not whole: damaged, half-written or of another format.
    """
    try:
        manifest, pieces = _verify(pyarrow.fs.LocalFileSystem(), str(directory), digests=not has_digests_right)
        others = {Path(name).stem: _read_file(directory / name) for name in manifest.files.keys() - set(manifest.parts)}
    except Damaged as damage:
        raise UserError(f"checkpoint {directory} cannot be used: {damage}") from damage
    if manifest.format == 1:
        groups = {name: others.pop(name) for name in GROUPS}
    else:
        groups = put_together(directory, pieces, manifest.shapes)
    return (
        EngineState(manifest.step, **groups),
        manifest.progress.model_dump(),
        {name.removeprefix("extra-"): tensors for name, tensors in others.items()},
    )


def _read_file(path: Path) -> LazyTensors:
    try:
        return read_tensors(path)
    except (SafetensorError, KeyError) as error:
        raise Damaged(f"{path.name} is no safetensors file") from error


def newest_good(filesystem: pyarrow.fs.FileSystem, path: str) -> str | None:
    """Name of the whole checkpoint with the highest `outer_step` among those in the folder `path` of a storage.

    One that is not whole is left out with a warning that says what is wrong with it. None: there is no whole one.
    """
    folders = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
    outer_steps: dict[str, int] = {}
    for folder in folders:
        if folder.type == pyarrow.fs.FileType.Directory and folder.base_name.startswith(PREFIX):
            try:
                outer_steps[folder.base_name] = read_manifest(filesystem, folder.path).progress.outer_step
            except Damaged as damage:
                logger.warning("checkpoint %s is left out: %s", folder.base_name, damage)
    for name in sorted(outer_steps, key=lambda name: outer_steps[name], reverse=True):
        try:
            _verify(filesystem, f"{path}/{name}")
            return name
        except Damaged as damage:
            logger.warning("checkpoint %s is left out, the one before is tried: %s", name, damage)
    return None


def check_copy(directory: Path) -> None:
    """Reads a copy of a good checkpoint.

    Raises:
        OSError: it is not what was copied.
    """
    try:
        _verify(pyarrow.fs.LocalFileSystem(), str(directory))
    except Damaged as damage:
        raise OSError(f"the copy of a checkpoint in {directory} is not what is stored: {damage}") from damage


def read_manifest(filesystem: pyarrow.fs.FileSystem, path: str) -> Manifest:
    """The manifest of the checkpoint at `path`. Only what is wrong with it raises Damaged: a storage that cannot be
    reached must not start a run afresh."""
    try:
        with filesystem.open_input_stream(f"{path}/{MANIFEST}") as stream:
            content = stream.read()
    except FileNotFoundError as error:
        raise Damaged(f"it has no {MANIFEST}, so its writing was not finished") from error
    try:
        manifest = Manifest.model_validate_json(content)
        raw = json.loads(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([MANIFEST, *map(str, first["loc"])])
        raise Damaged(" ".join(f"{where} is damaged or of another version: {first['msg']}".split())) from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} is damaged: it is no JSON") from error
    if manifest.format == 2 and raw.pop("blake2b", None) != _digest(raw):
        raise Damaged(f"the content of {MANIFEST} is not what was written")
    return manifest


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _verify(filesystem: pyarrow.fs.FileSystem, path: str, *, digests: bool = True) -> tuple[Manifest, Pieces]:
    """The manifest of a checkpoint whose every file is as it says, and where the pieces are; raises Damaged. Without
    `digests` no more is seen of a file than its size, and of a part its header."""
    manifest = read_manifest(filesystem, path)
    missing = [] if manifest.format == 2 else [f"{name}.safetensors" for name in GROUPS]
    if missing := [name for name in missing if name not in manifest.files]:
        raise Damaged(f"{MANIFEST} does not list {missing[0]}")
    for name, record in manifest.files.items():
        file = filesystem.get_file_info(f"{path}/{name}")
        if file.type != pyarrow.fs.FileType.File:
            raise Damaged(f"{name} is missing")
        if file.size != record.bytes:
            raise Damaged(f"{name} has {file.size} bytes, not {record.bytes}")
    for name, record in manifest.files.items() if digests else ():
        with filesystem.open_input_stream(f"{path}/{name}") as stream:
            if hashlib.file_digest(stream, hashlib.blake2b).hexdigest() != record.blake2b:
                raise Damaged(f"the content of {name} is not what was written")
    return manifest, find_pieces(_opened(filesystem, path, manifest), manifest.shapes)


def _opened(filesystem: pyarrow.fs.FileSystem, path: str, manifest: Manifest) -> Iterable[tuple[str, Any, int]]:
    for name in manifest.parts:
        with filesystem.open_input_file(f"{path}/{name}") as stream:
            yield name, stream, manifest.files[name].bytes
