"""A local folder that stands for one at an address: what changes on either side is carried to the other."""

import contextlib
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from distmeta.errors import UserError, first_line
from distmeta.store.address import open_address
from distmeta.store.claim import Claim
from distmeta.store.limits import limit

if TYPE_CHECKING:
    import pyarrow.fs

INTERVAL = 3.0
"""Seconds between two looks for what has changed; more where a look takes long, so that it takes a sixth at most."""

PATIENCE = 600.0
"""Seconds for which a storage that does not answer is waited for, where nothing can be done without it; or those of
the environment variable `DISTMETA_STORAGE_WAIT`."""

NOT_FETCHED = re.compile(r"(.*/)?(checkpoints|corpus(-\d+)?|work)/.*|(.*/)?\..*")
"""What does not come until it is asked for, or never: checkpoints, corpora, and what begins with a dot."""

NOT_CARRIED = re.compile(r"(.*/)?(checkpoints|work|unfinished|staged)/")
"""Folders that do not go to the address: checkpoints do by themselves, and what a corpus is put together in."""

MANIFEST = "manifest.json"

logger = logging.getLogger(__name__)

State = tuple[int, int]
"""Size (bytes) and time of change (ns) of a file."""


class Mirror:
    """A local folder that stands for the folder at an address.

    Args:
        address: of the folder.
        key: the setting that it was given in.
        folder: the local one.
        carries: which files this process writes; unset: all.

    Raises:
        UserError: the address is none that can be opened, or the longest wait for it no number.
    """

    def __init__(
        self, address: str, key: str, folder: Path, carries: Callable[[str], object] = lambda name: True
    ) -> None:
        self.address, self.key, self.folder, self.carries = address, key, folder, carries
        self.filesystem, path = open_address(address, key)
        self.path = path.rstrip("/")
        self.claim = Claim(self.filesystem, self.path, address)
        self._here: dict[str, State] = {}
        """The local files that are as they are at the address, by name."""
        self._there: dict[str, State] = {}
        """The same files as the storage tells of them."""
        self._lock = threading.RLock()
        self._asked_for: set[str] = set()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing_since: float | None = None
        self._limit = limit("DISTMETA_STORAGE_WAIT", PATIENCE, "seconds")

    def fetch(
        self,
        prefix: str = "",
        wanted: Callable[[str], object] = lambda name: not NOT_FETCHED.fullmatch(name),
        *,
        recursive: bool = True,
    ) -> None:
        """Brings what has changed at the address below `prefix` (which ends with a slash), and removes what is gone.

        Raises OSError where the storage does not answer.
        """
        with self._lock:
            found = {info.path[len(self.path) + 1 :]: info for info in self._list(prefix, recursive)}
            for name, info in found.items():
                state = (info.size, info.mtime_ns or 0)
                if wanted(name) and (self._there.get(name) != state or not (self.folder / name).exists()):
                    self._fetch_file(name)
                    self._there[name] = state
            for name in [name for name in self._there if name.startswith(prefix) and name not in found]:
                if wanted(name) and (recursive or "/" not in name[len(prefix) :]):
                    (self.folder / name).unlink(missing_ok=True)
                    self._forget(name)

    def need(self, prefix: str) -> None:
        """Brings a folder that does not come until it is asked for; once.

        Raises:
            UserError: the storage has not answered for long.
        """
        if prefix not in self._asked_for:
            self._asked_for.add(prefix)
            self.patiently(lambda: self.fetch(prefix, lambda name: not re.search(r"(^|/)(work/|\.)", name)))

    def bring(self, path: Path) -> None:
        """Brings a file, or those of a folder, that another process has carried to the address and that is not here."""
        name = path.relative_to(self.folder).as_posix()
        info = self.filesystem.get_file_info(f"{self.path}/{name}")
        if info.is_file:
            self._fetch_file(name)
        else:
            self.fetch(f"{name}/", lambda each: not (self.folder / each).exists())

    def put(self, folder: Path) -> None:
        """Brings to the address what is new in a folder, whoever is to write there otherwise."""
        with self._lock:
            for name, state in self._files(folder):
                if self._here.get(name) != state:
                    self._carry_file(name, state)

    def carry(self) -> None:
        """Brings to the address what has changed here and is this process's to write.

        Where a folder has a manifest, the one before goes first and the new one comes last, so what is there with it
        is whole.

        Raises:
            OSError: the storage does not answer.
            UserError: another process has taken the address over.
        """
        with self._lock:
            mine = {
                name: state for name, state in self._files(self.folder, NOT_CARRIED.fullmatch) if self.carries(name)
            }
            changed = sorted(
                (name for name, state in mine.items() if self._here.get(name) != state),
                key=lambda name: (Path(name).name == MANIFEST, name),
            )
            gone = [name for name in self._here if self.carries(name) and not (self.folder / name).exists()]
            if not changed and not gone:
                return
            if self.claim.token is not None and not self.claim.is_held():
                raise UserError(f"{self.address}: another process has taken it over")
            for name in changed:
                if Path(name).name == MANIFEST and name in self._there:
                    gone.append(name)
            for name in gone:
                with contextlib.suppress(FileNotFoundError):
                    self.filesystem.delete_file(f"{self.path}/{name}")
                self._forget(name)
            for name in changed:
                self._carry_file(name, mine[name])

    def start(self, follow: Callable[[], None] = lambda: None) -> None:
        """Carries what has changed every few seconds, and calls `follow` for what is to be fetched, beside the work."""
        self._over.clear()
        self._thread = threading.Thread(target=self._keep_up, args=(follow,), daemon=True, name="distmeta-mirror")
        self._thread.start()

    def stop(self) -> None:
        """Ends that, and carries the rest.

        Raises:
            UserError: the storage has not answered for long, or another process has taken the address over.
        """
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.patiently(self.carry)

    def patiently(self, work: Callable[[], None]) -> None:
        """Does what nothing can be done without, again and again while the storage does not answer.

        Raises:
            UserError: it has not for as long as is set.
        """
        started = time.monotonic()
        while True:
            try:
                work()
            except OSError as error:
                if time.monotonic() - started > self._limit:
                    raise UserError(
                        f"{self.key}: {self.address}: cannot be reached for {self._limit:.0f} s ({first_line(error)}); "
                        f"what was to go there is in {self.folder}"
                    ) from None
                self._tell_failure(error)
                time.sleep(INTERVAL)
            else:
                self._tell_recovery()
                return

    def _list(self, prefix: str, recursive: bool) -> "list[pyarrow.fs.FileInfo]":
        import pyarrow.fs

        selector = pyarrow.fs.FileSelector(
            f"{self.path}/{prefix}".rstrip("/"), allow_not_found=True, recursive=recursive
        )
        return [info for info in self.filesystem.get_file_info(selector) if info.type == pyarrow.fs.FileType.File]

    def _fetch_file(self, name: str) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as source, unfinished.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
        self._here[name] = _state(target)

    def _carry_file(self, name: str, state: State) -> None:
        try:
            file = (self.folder / name).open("rb")
        except FileNotFoundError:
            return  # it is gone again
        with file, self.filesystem.open_output_stream(f"{self.path}/{name}") as target:
            shutil.copyfileobj(file, target, 1 << 20)
        info = self.filesystem.get_file_info(f"{self.path}/{name}")
        self._here[name], self._there[name] = state, (info.size, info.mtime_ns or 0)

    def _files(
        self, within: Path, left_out: Callable[[str], object] = lambda folder: False
    ) -> Iterator[tuple[str, State]]:
        for folder, folders, files in os.walk(within):
            prefix = f"{os.path.relpath(folder, self.folder)}/".removeprefix("./")
            folders[:] = [each for each in folders if not left_out(f"{prefix}{each}/")]
            for each in files:
                path = Path(folder, each)
                if not each.startswith(".") and not path.is_symlink():
                    with contextlib.suppress(FileNotFoundError):
                        yield f"{prefix}{each}", _state(path)

    def _forget(self, name: str) -> None:
        self._here.pop(name, None)
        self._there.pop(name, None)

    def _keep_up(self, follow: Callable[[], None]) -> None:
        pause = INTERVAL
        while not self._over.wait(pause):
            started = time.monotonic()
            try:
                self.carry()
                follow()
            except OSError as error:
                self._tell_failure(error)
            except UserError as error:
                logger.warning("%s", error)
                return
            else:
                self._tell_recovery()
            pause = max(INTERVAL, 5 * (time.monotonic() - started))

    def _tell_failure(self, error: OSError) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            logger.warning(
                "%s does not answer (%s): trying again; where nothing can be done without it, for %.0f s "
                "(DISTMETA_STORAGE_WAIT)",
                self.address,
                first_line(error),
                self._limit,
            )

    def _tell_recovery(self) -> None:
        if self._failing_since is not None:
            logger.warning("%s answers again after %.0f s", self.address, time.monotonic() - self._failing_since)
            self._failing_since = None


def _state(path: Path) -> State:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
