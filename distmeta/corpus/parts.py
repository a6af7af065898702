"""Parts: the results of units of work, named by what determines them, so that none is made twice or half.

A part is a folder whose name is a hash of its inputs' content and of the settings that it depends on. It is written
under another name and renamed when it is whole. What has the right name is therefore finished and up to date, after
whatever interruption, and two workers may make the same part without harm.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distmeta.files import write_json
from distmeta.store.folders import present

FORMAT_VERSION = 7
"""Raise it when a part's content changes for the same inputs."""
SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part: its folder, and the summary that was written with it."""

    folder: Path
    summary: dict[str, Any]

    @property
    def key(self) -> str:
        """The hash that names the part."""
        return self.folder.name


def digest(content: object) -> str:
    """Return 32 hexadecimal digits that name a JSON value."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """Return 32 hexadecimal digits that name a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def make_part(step: Path, identity: object, write: Callable[[Path], dict[str, Any]]) -> Part:
    """Return the part of `step` that `identity` determines; `write(folder) -> summary` makes it where there is none."""
    folder = step / digest([FORMAT_VERSION, step.name, identity])
    if not folder.exists():
        unfinished = step / f"unfinished-{uuid.uuid4().hex}"
        unfinished.mkdir(parents=True)
        write_json(unfinished / SUMMARY, write(unfinished))
        try:
            unfinished.rename(folder)
        except OSError:  # another worker has finished the same part meanwhile
            shutil.rmtree(unfinished)
    return Part(folder, json.loads((folder / SUMMARY).read_text()))


def remove_other_parts(work: Path, parts: Iterable[Part]) -> None:
    """Remove from the folder of all steps what earlier settings, earlier content and interruptions have left there."""
    wanted = {part.folder for part in parts}
    for step in filter(Path.is_dir, work.iterdir()):
        for folder in step.iterdir():
            if folder not in wanted:
                _remove(folder)


def publish(files: Sequence[Path], folder: Path, names: Sequence[str]) -> None:
    """Put files into `folder` under the given names, and remove all else there. Where it can, a file is a hard link."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, name in zip(files, names, strict=True):
        target = folder / name
        if target.exists() and target.samefile(present(file)):
            continue
        fresh = folder / f"unfinished-{name}"
        fresh.unlink(missing_ok=True)
        try:
            os.link(present(file), fresh)
        except OSError:
            shutil.copyfile(file, fresh)
        fresh.replace(target)
    for stale in set(os.listdir(folder)) - set(names):
        _remove(folder / stale)


def install(staged: Path, folder: Path, last: str) -> bool:
    """Move all that stands in `staged` to `folder`, in the place of what has its name there; the file `last` last.

    It is removed from `folder` first, so what is there with it is whole. Call it again where it was interrupted.
    Return whether there was anything to move.
    """
    if not staged.is_dir():
        return False
    (folder / last).unlink(missing_ok=True)
    for name in sorted(os.listdir(staged), key=lambda name: name == last):
        target = folder / name
        if target.exists():
            _remove(target)
        (staged / name).rename(target)
    staged.rmdir()
    return True


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_list(folder: Path, items: Sequence[str]) -> str:
    """Keep a list that many units share; return the name under which `load_list` finds it."""
    name = digest(list(items))
    if not (folder / f"{name}.json").exists():
        write_json(folder / f"{name}.json", list(items))
    return name


def load_list(folder: Path, name: str) -> list[str]:
    """Return the list that `save_list` kept."""
    items: list[str] = json.loads(present(folder / f"{name}.json").read_text())
    return items


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table, the same bytes for the same content."""
    pq.write_table(table, path, compression="zstd", compression_level=1)


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a table in this thread."""
    return pq.read_table(present(path), columns=columns, use_threads=False, memory_map=True)
