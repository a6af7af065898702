"""Checkpoints beside the training: what stops it is a copy of each worker's own part, in memory.

A thread of each worker writes the part into the storage while the next steps are taken. The workers tell each other in
the sums that they make at each step anyway when all parts are there; then the first one writes the manifest, and only
from then on is it a checkpoint. Ray Train's own way would have them wait for the upload before, knows no manifest that
comes last, and ends the worker where an upload fails.
"""

import copy
import logging
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed

from distmeta.engine.checkpoint import CHUNK, FileRecord, Manifest, Progress, part_name, shapes_of, write_file
from distmeta.engine.deepspeed_engine import Engine
from distmeta.engine.parts import Snapshot
from distmeta.errors import UserError, first_line
from distmeta.tensors import written
from distmeta.train.checkpoint_folder import CheckpointFolder

PAUSE, LONGEST_PAUSE = 5.0, 60.0
"""Seconds between two attempts to store the last checkpoint, after which there is no other; doubled each time."""
LONG_WAIT = 1.0
"""Seconds of waiting for the checkpoint before that are told."""

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run under way. Every worker calls the same methods in the same order.

    Args:
        to: where they go.
        engine: what they are of.
        rank: of this worker, of which the first one writes the manifest.
        world_size: number of workers.
    """

    def __init__(self, to: CheckpointFolder, engine: Engine, rank: int, world_size: int) -> None:
        self._to, self._engine, self._rank, self._world_size = to, engine, rank, world_size
        self._snapshot = Snapshot()
        self._thread = ThreadPoolExecutor(1, "distmeta-checkpoint")
        self._outer_step = 0
        self._manifest: Manifest | None = None
        self._files: dict[str, Path] = {}
        self._writing: Future[dict[str, FileRecord]] | None = None
        self._committing: Future[str] | None = None
        self._has_told = self._is_last = False

    @property
    def is_written(self) -> bool:
        """Whether this worker has come to the end of writing a part, of which the others do not know yet."""
        return self._writing is not None and self._writing.done()

    def begin(self, progress: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Takes the state of the engine, and goes on to store it while the training does.

        `progress` is as in `write_checkpoint`, `files` are further ones by what they are. The checkpoint before has to
        be through, so that there is never more than one copy of the state.
        """
        started = time.perf_counter()
        self._settle()
        waited = time.perf_counter() - started
        if waited > LONG_WAIT and self._rank == 0 and not self._has_told and not self._is_last:
            self._has_told = True
            logger.warning(
                "train.checkpoint_every: training waited %.0f s for the checkpoint of outer step %d to be stored "
                "before the next: a larger one would spare that",
                waited,
                self._outer_step,
            )
        state = self._engine.state()
        self._outer_step = progress["outer_step"]
        self._manifest = Manifest(
            step=state.step, progress=Progress(**copy.deepcopy(dict(progress))), shapes=shapes_of(state)
        )
        part = self._snapshot.take(self._engine.part())
        # Opened now, since a better network would take the place of the file.
        opened: dict[str, BinaryIO] = {name: path.open("rb") for name, path in files.items()} if self._rank == 0 else {}
        self._writing = self._thread.submit(self._write, self._to.folder(self._outer_step), part, opened)
        self._files = dict(files)

    def commit(self) -> None:
        """Has the first worker write the manifest, now that every worker `is_written`, or tell that one has failed.

        Raises:
            UserError: this worker must not go on, such as where another driver has taken the run over.
        """
        assert self._writing is not None
        assert self._manifest is not None
        try:
            found: list[Any] = [self._writing.result()]
        except UserError:
            raise
        except Exception as error:  # whatever a storage may raise
            found = [(self._rank, first_line(error))]
        self._writing = None
        if self._world_size > 1:
            own, found = found[0], [None] * self._world_size
            torch.distributed.all_gather_object(found, own)
        if self._rank == 0:
            failed = [each for each in found if not isinstance(each, dict)]
            self._manifest.files = {
                name: record for each in found if isinstance(each, dict) for name, record in each.items()
            }
            self._committing = self._thread.submit(self._commit, self._outer_step, self._manifest, failed)

    def finish(self) -> None:
        """Waits until the checkpoint that was begun last is stored, for which it is tried again where it fails.

        Raises:
            OSError: it could not be stored.
        """
        self._is_last = True
        waited, pause = 0.0, PAUSE  # the same on every worker
        while failure := self._settle():
            if waited >= self._to.wait:
                raise OSError(f"the checkpoint of outer step {self._outer_step} could not be stored: {failure}")
            time.sleep(pause)
            waited, pause = waited + pause, min(2 * pause, LONGEST_PAUSE)
            assert self._manifest is not None
            self.begin(self._manifest.progress.model_dump(), self._files)
        self._is_last = False

    def close(self) -> None:
        """Waits for what was begun and lets go of the thread."""
        self._settle()
        self._thread.shutdown()

    def _settle(self) -> str:
        """Waits for the checkpoint that was begun last, if any; returns why it was not stored, on every worker."""
        if self._writing is not None:
            self._writing.exception()
            self.commit()
        failure = [self._committing.result() if self._committing is not None else ""]
        self._committing = None
        if self._world_size > 1:
            torch.distributed.broadcast_object_list(failure)
        return failure[0]

    def _write(
        self, folder: str, part: Mapping[str, torch.Tensor], opened: dict[str, BinaryIO]
    ) -> dict[str, FileRecord]:
        filesystem, name = self._to.filesystem, part_name(self._rank)
        try:
            filesystem.create_dir(folder)
            records = {name: write_file(filesystem, f"{folder}/{name}", written(part))}
            for what, file in opened.items():
                name = f"extra-{what}.safetensors"
                records[name] = write_file(filesystem, f"{folder}/{name}", _blocks(file))
            self._to.carry()
            return records
        finally:
            for file in opened.values():
                file.close()

    def _commit(self, outer_step: int, manifest: Manifest, failed: list[tuple[int, str]]) -> str:
        """Runs in the first worker's thread; returns why there is no such checkpoint."""
        try:
            if failed:
                raise OSError("; ".join(f"worker {rank}: {error}" for rank, error in failed))
            self._to.commit(outer_step, manifest)
        except Exception as error:  # whatever a storage may raise
            logger.warning(
                "the checkpoint of outer step %d was not stored: %s; those before it stay, and %s",
                outer_step,
                first_line(error),
                f"it is tried again for {self._to.wait:.0f} s at the most (train.wait_for_storage)"
                if self._is_last
                else "the next is tried anew",
            )
            self._to.remove(outer_step)
            return first_line(error)
        try:
            self._to.remove_old(outer_step)
        except Exception as error:
            logger.warning("old checkpoints stay where they are: %s", first_line(error))
        return ""


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(CHUNK):
        yield block
