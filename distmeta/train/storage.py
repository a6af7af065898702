"""Where the checkpoints of a run are: the run directory, a shared path, or an s3-like address."""

from pathlib import Path

import pyarrow.fs

from distmeta.config import Config
from distmeta.engine.checkpoint import newest_good
from distmeta.errors import UserError
from distmeta.rundir import RunDirectory

CHECKPOINTS = "checkpoints"
"""The folder of the checkpoints in the storage; for Ray Train the name of the run."""


def storage_path(config: Config, run: RunDirectory) -> str:
    """The path or address in which the folder `checkpoints` is."""
    if config.train.storage is None:
        return str(run.path)
    # What stands behind a question mark says how to reach the storage, not where in it.
    base, mark, query = config.train.storage.partition("?")
    return f"{base.rstrip('/')}/{run.path.name}{mark}{query}"


def newest_checkpoint(config: Config, run: RunDirectory) -> tuple[pyarrow.fs.FileSystem, Path] | None:
    """The newest good checkpoint as file system and path in it; None: there is none.

    Raises:
        UserError: the storage cannot be reached.
    """
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(storage_path(config, run))
        name = newest_good(filesystem, f"{path}/{CHECKPOINTS}")
    except (OSError, ValueError) as error:
        raise UserError(f"train.storage: cannot be reached: {str(error).splitlines()[0]}") from None
    return None if name is None else (filesystem, Path(path) / CHECKPOINTS / name)
