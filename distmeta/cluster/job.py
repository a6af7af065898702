"""In a job that was submitted to a cluster the current folder is a copy of what was uploaded: what git ignores is not
in it, and Ray deletes it in the end."""

from pathlib import Path

from distmeta.config import Config
from distmeta.errors import UserError

COPY = "_ray_pkg_"
"""What Ray's name of such a folder begins with."""


def check_stays(config: Config, run: Path) -> None:
    """Raises UserError where what a command writes would be deleted with the job."""
    folders = {
        "--run-dir": str(run),
        "corpus.directory": config.corpus.directory,
        "train.storage": config.train.storage,
    }
    for setting, path in folders.items():
        if path and _in_copy(Path(path)):
            raise UserError(
                f"{setting}: {path} is in the job's copy of the code, which Ray deletes: give an absolute path, on "
                "storage that all nodes see"
            )


def check_uploaded(file: Path | None) -> None:
    """Raises UserError where a file that is asked for stayed behind when the job was submitted."""
    if file is not None and not file.exists() and _in_copy(file.absolute()):
        raise UserError(
            f"{file}: is not in the job's copy of the code: what git ignores is not uploaded, nor what is outside of "
            "the working directory; give an absolute path, on storage that all nodes see"
        )


def _in_copy(path: Path) -> bool:
    return any(part.startswith(COPY) for part in path.parts)
