"""The folder of a storage that the checkpoints of a run are in: what makes one of them count, and which ones go."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs

from distmeta.engine.checkpoint import MANIFEST, PREFIX, Manifest, read_manifest, write_file
from distmeta.engine.parts import Damaged


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder of a storage, with the checkpoints of one run."""

    filesystem: pyarrow.fs.FileSystem
    path: str
    keep: int = 2
    """Newest ones that are kept."""
    ending: str = ""
    """Of their names; it keeps one that is made again apart from one that is there and damaged."""
    carry: Callable[[], None] = lambda: None
    """Sees to it, on each worker, that what a checkpoint goes on from is in place before it counts; a UserError of it
    ends the run."""
    note: Callable[[], None] = lambda: None
    """Called on the first worker when a checkpoint counts."""
    wait: float = 10.0
    """Seconds for which the last checkpoint of a run is tried again where the storage fails."""

    @classmethod
    def local(cls, path: Path, keep: int = 2, ending: str = "") -> "CheckpointFolder":
        """One of this machine."""
        return cls(pyarrow.fs.LocalFileSystem(), str(path), keep, ending)

    def folder(self, outer_step: int) -> str:
        """That of one checkpoint."""
        return f"{self.path}/{PREFIX}{outer_step:08d}{self.ending}"

    def commit(self, outer_step: int, manifest: Manifest) -> None:
        """Makes what is in the folder a checkpoint, where all of its files are there as they were written.

        Raises:
            OSError: one of them is not, or the storage failed.
        """
        folder = self.folder(outer_step)
        found = self.filesystem.get_file_info(pyarrow.fs.FileSelector(folder))
        sizes = {file.base_name: file.size for file in found}
        for name, record in manifest.files.items():
            if sizes.get(name) != record.bytes:
                raise OSError(
                    f"{name} was written, and the first worker does not find it in {folder}: "
                    "set train.storage to a place that all nodes share"
                )
        write_file(self.filesystem, f"{folder}/{MANIFEST}", [manifest.written()])
        self.note()

    def remove(self, outer_step: int) -> None:
        """Removes what is there of a checkpoint that cannot be one."""
        with suppress(Exception):  # the storage may still fail; the next good checkpoint removes it
            self.filesystem.delete_dir(self.folder(outer_step))

    def remove_old(self, outer_step: int) -> None:
        """Removes all but the newest ones, of which the last is of `outer_step`: also what was left half-written, and
        any of a later step, which the run did not go on from, and so cannot be good."""
        newest, found = self.folder(outer_step).rsplit("/", 1)[1], {}
        for folder in self.filesystem.get_file_info(pyarrow.fs.FileSelector(self.path)):
            is_checkpoint = folder.type == pyarrow.fs.FileType.Directory and folder.base_name.startswith(PREFIX)
            if is_checkpoint and folder.base_name != newest:
                try:
                    step = read_manifest(self.filesystem, folder.path).progress.outer_step
                except Damaged:
                    step = outer_step
                found[folder.path] = step
        older = sorted((step, path) for path, step in found.items() if step < outer_step)
        kept = {path for _, path in older[max(0, len(older) - self.keep + 1) :]} if self.keep > 1 else set()
        # In it Ray Train, with which checkpoints were stored before, would miss what is removed here.
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.path}/checkpoint_manager_snapshot.json")
        for path in found.keys() - kept:
            self.filesystem.delete_dir(path)
