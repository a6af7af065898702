"""Folders of an address that a node's workers read again and again, fetched once a node.

A copy is named by the digest of what describes its content (a corpus's manifest), so it is never out of date; it takes
its name when it is whole, so nobody reads half of one; and whoever asks while another process fetches it, waits for
that. What was used last is kept, up to `DISTMETA_CACHE_GIB` (100), and whatever a process has asked for that still
runs.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from filelock import FileLock

from distmeta.errors import UserError
from distmeta.store.address import open_address
from distmeta.store.limits import limit

if TYPE_CHECKING:
    import pyarrow.fs

LIMIT_GIB = 100.0

_IN_USE: dict[Path, IO[str]] = {}
"""Of the copies that this process has asked for the open file whose shared lock says so, until the process ends."""


def cache_root() -> Path:
    """The folder of this node's copies: `DISTMETA_CACHE`, or `distmeta` in the user's cache; nobody else may read it.

    Raises:
        UserError: none can be made.
    """
    named = os.environ.get("DISTMETA_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distmeta"
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        if named:
            raise UserError(f"DISTMETA_CACHE: {base}: no folder can be made there ({error.strerror})") from None
        base = Path(tempfile.gettempdir()) / f"distmeta-{os.getuid()}"
        base.mkdir(exist_ok=True, mode=0o700)
    return base.resolve()


def cached_file(address: str) -> Path:
    """This node's copy of a file at an address.

    Raises:
        UserError: the file is not there.
    """
    import pyarrow.fs

    filesystem, path = open_address(address, "--run-dir")
    info = filesystem.get_file_info(path)
    if not info.is_file:
        raise UserError(f"{address}: no file is there")

    def copy_into(folder: Path) -> None:
        folder.mkdir()
        pyarrow.fs.copy_files(path, str(folder / info.base_name), source_filesystem=filesystem)

    return _copy_of(f"{address} {info.size} {info.mtime_ns}".encode(), copy_into) / info.base_name


def cached_folder(
    address: str,
    described_by: str,
    left_out: tuple[str, ...] = (),
    *,
    key: str = "corpus.directory",
    check: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """This node's copy of the folder at an address.

    Args:
        address: of the folder.
        described_by: the file in it that changes with its content.
        left_out: folders in it that are not needed.
        key: the setting that has the address.
        check: asked of a new copy before it counts; what it raises is raised.

    Raises:
        UserError: the folder is not there, or has changed while it was fetched.
    """
    filesystem, path = open_address(address, key)

    def description() -> bytes:
        try:
            with filesystem.open_input_stream(f"{path}/{described_by}") as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            raise UserError(f"{address}: nothing is prepared there: it has no {described_by}") from None

    found = description()

    def copy_into(folder: Path) -> None:
        _copy(filesystem, path, folder, left_out)
        if description() != found:
            raise UserError(f"{address}: changed while it was read; try again")
        check(folder)

    return _copy_of(address.encode() + b"\0" + found, copy_into)


def _copy_of(identity: bytes, copy_into: Callable[[Path], None]) -> Path:
    """The folder of what has an identity, which `copy_into` fills where it is not there."""
    copies = cache_root() / "folders"
    copies.mkdir(exist_ok=True, mode=0o700)
    copy = copies / hashlib.blake2b(identity, digest_size=16).hexdigest()
    with FileLock(f"{copy}.lock"):
        if copy not in _IN_USE:
            _IN_USE[copy] = _used(copy)
        if not copy.is_dir():
            unfinished = copies / f".unfinished-{uuid.uuid4().hex}"
            in_use = _used(unfinished)
            try:
                copy_into(unfinished)
                unfinished.rename(copy)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
                in_use.close()
                _use_of(unfinished).unlink()
        os.utime(copy)
    with FileLock(copies / "removing.lock"):
        _remove_oldest(copies)
    return copy


def _used(copy: Path) -> IO[str]:
    """Says that this process uses a copy, as long as the file that is returned is open; waits for who removes it."""
    file = _use_of(copy).open("a")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _use_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.used")


def _copy(filesystem: "pyarrow.fs.FileSystem", path: str, folder: Path, left_out: tuple[str, ...]) -> None:
    import pyarrow.fs

    for info in filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True)):
        name = info.path[len(path) + 1 :]
        if info.type != pyarrow.fs.FileType.File or name.partition("/")[0] in left_out:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.fs.copy_files(info.path, str(target), source_filesystem=filesystem)


def _remove_oldest(copies: Path) -> None:
    """Removes what was not used for longest and is not in use, where all copies together take more than they may."""
    taken, most = 0.0, limit("DISTMETA_CACHE_GIB", LIMIT_GIB, "GiB") * 2**30
    found = [(modified, each) for each in copies.iterdir() if (modified := _modified(each)) is not None]
    for _, each in sorted(found, reverse=True):
        taken += _size(each)
        if taken > most:
            with _use_of(each).open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                # Under another name first: what is left where this is killed must not be taken for a whole copy.
                with contextlib.suppress(FileNotFoundError):  # a fetch that has just come to its end
                    shutil.rmtree(each.rename(each.with_name(f".removed-{uuid.uuid4().hex}")), ignore_errors=True)


def _modified(folder: Path) -> float | None:
    """When a folder was last changed (seconds since 1970); None: it is none, or another process has just renamed it."""
    with contextlib.suppress(FileNotFoundError):
        return folder.stat().st_mtime if folder.is_dir() else None
    return None


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, as far as it is there."""
    size = 0
    with contextlib.suppress(FileNotFoundError):
        for file in folder.rglob("*"):
            size += file.stat().st_size if file.is_file() else 0
    return size
