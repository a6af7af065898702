"""Where the checkpoints of a run are: in its directory, or on a storage of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs

from distmeta.config import Config
from distmeta.engine.checkpoint import MANIFEST, PREFIX, check_copy, newest_good
from distmeta.errors import UserError, first_line
from distmeta.ownership import own
from distmeta.paths import check_folder
from distmeta.rundir import RunDirectory
from distmeta.store.address import join
from distmeta.store.cache import cached_folder
from distmeta.store.folders import given

CHECKPOINTS = "checkpoints"
"""The folder of the checkpoints in the storage; for Ray Train the name of the run."""


def storage_path(config: Config, run: RunDirectory) -> str:
    """The path or address in which the folder `checkpoints` is."""
    if config.train.storage is None:
        return given(run.path)
    # What stands behind a question mark says how to reach the storage, not where in it.
    base, mark, query = config.train.storage.partition("?")
    return f"{base.rstrip('/')}/{run.path.name}{mark}{query}"


def check_storage(config: Config, run: RunDirectory) -> None:
    """Refuses a storage that cannot be reached, or is no folder that can be written in.

    Raises:
        UserError: with the reason.
    """
    if config.train.storage is None:
        return
    if "://" not in config.train.storage:
        check_folder(Path(config.train.storage), "train.storage", writable=True)
        return
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(storage_path(config, run))
        filesystem.get_file_info(f"{path}/{CHECKPOINTS}")
    except Exception as error:  # whatever a storage or a hub may raise
        raise UserError(f"train.storage: cannot be reached: {first_line(error)}") from None


@contextmanager
def own_storage(config: Config, run: RunDirectory) -> Iterator[None]:
    """Makes this process the only one that writes in the storage of a run, where that is a path.

    Another run directory of the same name may have the same storage.

    Raises:
        UserError: another process writes there, or it can be no storage.
    """
    check_storage(config, run)
    if config.train.storage is None or "://" in config.train.storage:
        yield
    else:
        with own(Path(storage_path(config, run))):
            yield


def is_used(config: Config, run: RunDirectory) -> bool:
    """Whether there is anything in the storage of a run or a sweep."""
    filesystem, path = pyarrow.fs.FileSystem.from_uri(storage_path(config, run))
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
    return any(not info.base_name.startswith(".") for info in found)


def newest_checkpoint(config: Config, run: RunDirectory) -> tuple[pyarrow.fs.FileSystem, Path] | None:
    """The newest good checkpoint as file system and path in it; None: there is none.

    Raises:
        UserError: the storage cannot be reached, or what the run has left there is gone.
    """
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(storage_path(config, run))
        name = newest_good(filesystem, f"{path}/{CHECKPOINTS}")
    except Exception as error:  # whatever a storage or a hub may raise
        raise UserError(f"{storage_path(config, run)}: cannot be reached: {first_line(error)}") from None
    if name is None:
        check_not_gone(config, run)
        return None
    return filesystem, Path(path) / CHECKPOINTS / name


def check_not_gone(config: Config, run: RunDirectory) -> None:
    """Refuses a storage without any checkpoint, good or not, of a run that has left some there: a disk that is not
    mounted is an empty folder, in which the run would begin again.

    Raises:
        UserError: there is none, or the storage cannot be reached.
    """
    if not run.has_checkpoint.exists():
        return
    where = storage_path(config, run)
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(where)
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(f"{path}/{CHECKPOINTS}", allow_not_found=True))
    except Exception as error:  # whatever a storage or a hub may raise
        raise UserError(f"{where}: cannot be reached: {first_line(error)}") from None
    if not any(info.base_name.startswith(PREFIX) for info in found):
        raise UserError(
            f"{where}: the checkpoints of this run are gone: see whether what they are on is mounted; where they are "
            f"lost, remove {run.has_checkpoint}, and it begins again"
        )


def local_copy(config: Config, run: RunDirectory, path: str) -> Path:
    """The folder on a disk that has the good checkpoint at a path of the storage: that itself, where the storage is a
    path; else a copy, one for all workers of a node, which has been read to the end.

    Raises:
        OSError, UserError: the storage failed.
    """
    address = storage_path(config, run)
    filesystem, _ = pyarrow.fs.FileSystem.from_uri(address)
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return Path(path)
    checkpoint = join(address, CHECKPOINTS, Path(path).name)
    return cached_folder(checkpoint, MANIFEST, key="train.storage", check=check_copy)
