"""Whether all nodes see the same files: one writes a small file, the others read it and write one of their own."""

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow.fs

from distmeta.config import Config
from distmeta.errors import first_line
from distmeta.paths import is_address
from distmeta.rundir import RunDirectory
from distmeta.store.folders import given

MARKER = ".distmeta-doctor-"
"""What the names of the files begin with that are written to be seen by other nodes."""

LATE = 3.0
"""Seconds in which a file has to be seen elsewhere: a network's file system asks its server now and then."""

STORAGE = 30.0
"""Seconds that storage has for what this process asks of it."""


@dataclass(frozen=True)
class Place:
    """A folder that all nodes have to see."""

    key: str
    """The setting that names it."""
    address: str
    """A path, or what `pyarrow.fs.FileSystem.from_uri` takes."""
    marker: str | None = None
    """The file in it that was written for the others to read; None: it is only looked whether the folder is there."""
    fault: str = ""
    """Why no file could be written in it."""

    @property
    def is_path(self) -> bool:
        """Whether it is on a file system of the machine."""
        return not is_address(self.address)

    @property
    def told(self) -> str:
        """The address as it may be shown: without what may say how to log in."""
        address = self.address.partition("?")[0]
        scheme, mark, rest = address.partition("://")
        return f"{scheme}{mark}{rest.rpartition('@')[2]}" if mark else address


def places_of(config: Config, run: RunDirectory) -> list[Place]:
    """The folders of a run that each of its workers reads or writes."""
    named = {
        "--run-dir": given(run.path),
        "corpus.directory": config.corpus.directory,
        "train.storage": config.train.storage,
        "model.name_or_path": config.model.name_or_path,
        "tokenizer.name_or_path": config.tokenizer.name_or_path,
    }
    found = [Place(key, address) for key, address in named.items() if address]
    found = [replace(each, address=str(Path(each.address).absolute())) if each.is_path else each for each in found]
    return [each for each in found if not each.key.endswith("name_or_path") or Path(each.address).is_dir()]


@contextmanager
def marked(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Writes a file into each folder that runs write in, for the time of a check. What is made for it is removed."""
    name, made = f"{MARKER}{secrets.token_hex(4)}", _make(places)
    result: list[Place] = []
    try:
        for place in places:
            if _is_only_read(place):
                result.append(place)
            elif fault := within(STORAGE, partial(_write, place, name)):
                result.append(replace(place, fault=fault))
            else:
                result.append(replace(place, marker=name))
        yield result
    finally:
        for place in result:
            if place.marker:
                within(STORAGE, partial(_remove, place, name))
            if place.marker and place.is_path:  # what was written too late to be looked for
                for file in Path(place.address).glob(f"{name}*"):
                    file.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def look(place: Place, own: str) -> str:
    """Looks from another node; what is wrong there, or nothing. Leaves a file of the name that ends with `own`."""
    if place.fault:
        return ""
    try:
        if place.marker is None:
            return "" if Path(place.address).exists() else "is not there"
        deadline = time.monotonic() + LATE
        while not _has(place, place.marker):
            if time.monotonic() > deadline:
                return "is another folder there, or none"
            time.sleep(0.2)
        _write(place, place.marker + own)
    except Exception as error:  # whatever a storage may raise
        return f"cannot be read and written there ({first_line(error)})"
    return ""


def look_back(place: Place, own: str) -> str:
    """Looks for what another node has left, and removes it; what is wrong, or nothing."""

    def seen() -> str:
        assert place.marker is not None
        deadline = time.monotonic() + LATE
        while not _has(place, place.marker + own):
            if time.monotonic() > deadline:
                return "what it writes is not seen from this machine"
            time.sleep(0.2)
        return _remove(place, place.marker + own)

    return within(STORAGE, seen) if place.marker else ""


def within(seconds: float, action: Callable[[], str]) -> str:
    """What an action returns, or why it failed; storage that never answers is left to itself after so long."""
    found: list[str] = []

    def act() -> None:
        try:
            found.append(action())
        except Exception as error:  # whatever a storage may raise
            found.append(first_line(error))

    thread = threading.Thread(target=act, daemon=True, name="distmeta-storage")
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"no answer within {seconds:g} s"


def _make(places: Sequence[Place]) -> list[Path]:
    """Makes the folders that are not there; returns what was made, innermost first."""
    made: list[Path] = []
    for place in places:
        if place.is_path:
            folder = Path(place.address)
            missing = [each for each in (folder, *folder.parents) if not each.exists()]
            with suppress(OSError):  # told when it is written in
                folder.mkdir(parents=True, exist_ok=True)
                made = missing + made
    return made


def _is_only_read(place: Place) -> bool:
    """Whether runs read it and do not write: a model, or a prepared corpus of somebody else."""
    if place.key.endswith("name_or_path"):
        return True
    is_theirs = place.is_path and Path(place.address).is_dir() and not os.access(place.address, os.W_OK)
    return place.key == "corpus.directory" and is_theirs


def _open(place: Place) -> tuple[pyarrow.fs.FileSystem, str]:
    return pyarrow.fs.FileSystem.from_uri(place.address)


def _write(place: Place, name: str) -> str:
    filesystem, folder = _open(place)
    with filesystem.open_output_stream(f"{folder}/{name}") as file:
        file.write(name.encode())
    return ""


def _has(place: Place, name: str) -> bool:
    filesystem, folder = _open(place)
    try:
        with filesystem.open_input_stream(f"{folder}/{name}") as file:
            return bool(file.read().decode() == name)
    except FileNotFoundError:
        return False


def _remove(place: Place, name: str) -> str:
    filesystem, folder = _open(place)
    filesystem.delete_file(f"{folder}/{name}")
    return ""
