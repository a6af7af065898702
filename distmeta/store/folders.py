"""The folders of this process that stand for addresses, and who writes what of a run in them.

The driver's has all that a run has but its checkpoints, and is carried to the address every few seconds, and whole
before it is given back. While workers train, some files are theirs: rank 0 carries those, on whichever node it is, and
the driver reads them from the address, as rank 0 reads the driver's request to stop. So no file has two writers,
nothing needs a connection from one to the other, and what is at the address is what the next attempt goes on from.
"""

import contextlib
import hashlib
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from distmeta.cluster.machine import machine_name
from distmeta.errors import UserError, first_line
from distmeta.store.address import join, name_of, names_storage, open_address
from distmeta.store.cache import cache_root, cached_file, cached_folder
from distmeta.store.claim import Claim
from distmeta.store.mirror import INTERVAL, MANIFEST, NOT_FETCHED, Mirror

BY_WORKERS = re.compile(r"(metrics|validation|events-\d+)\.jsonl|wandb\.json|has-checkpoint|weights/.*|wandb/.*")
"""Of the files of a run those that its workers write."""

FOLLOWED = re.compile(r"(metrics|validation|events-\d+)\.jsonl")
"""Those of them that the driver reads meanwhile."""

STOP = "stop-requested"
"""The driver's file that rank 0 reads meanwhile."""

NOT_FOR_WORKERS = re.compile(r"(model|starting|evaluations|trials|tune|multitask|language-model)/.*|.*\.html")

TRAINING = ".training"
"""The file in the local folder of a run that says that workers train it."""

Owner = tuple[str, str]
"""A claimed address, and what tells its owner from others."""

_mirrors: dict[Path, Mirror] = {}
"""Those of this process, by their local folders."""
_temporary: list[Path] = []
_addresses: list[str] = []
"""Those that were ever opened here: what is said of them may come after their folders have gone."""
_only_reads = False
"""Whether this process does a part of the work of another one, which writes."""


def local_folder(address: str, key: str) -> Path:
    """The local folder that stands for an address, with what is there but checkpoints and corpora.

    Raises:
        UserError: the storage cannot be reached; `key` is the setting that has the address.
    """
    for mirror in _mirrors.values():
        base = mirror.address.partition("?")[0].rstrip("/")
        text = address.partition("?")[0].rstrip("/")
        if text == base or text.startswith(f"{base}/"):
            return mirror.folder / text[len(base) + 1 :]
    folder = _new_folder(address)
    mirror = Mirror(address, key, folder, lambda name: _is_drivers(folder, name))
    try:
        mirror.fetch()
    except OSError as error:
        raise UserError(f"{key}: {address}: cannot be reached: {first_line(error)}") from None
    _mirrors[mirror.folder] = mirror
    return mirror.folder


def looked_at(address: str, key: str, names: tuple[str, ...]) -> Path:
    """A local folder with some files of an address, to look at; nothing that is written there is carried.

    Raises:
        UserError: the storage cannot be reached; `key` is the setting that has the address.
    """
    mirror = Mirror(address, key, _new_folder(address), lambda name: False)
    mirror.patiently(lambda: mirror.fetch(wanted=lambda name: name in names, recursive=False))
    return mirror.folder


def corpus_folder(directory: str | None, own: Path) -> Path:
    """The local folder of a prepared corpus, with what is there.

    Args:
        directory: the path or address that `corpus.directory` has; None: it is the run's `own`.
        own: the folder of the run that the corpus would be in.

    Raises:
        UserError: the storage cannot be reached, or, on a worker, nothing is prepared there.
    """
    address = address_of(own) if directory is None else directory if names_storage(directory) else None
    if address is None:
        return own if directory is None else Path(directory)
    if _only_reads:
        return cached_folder(address, MANIFEST, left_out=("work", "used-by"))
    folder = local_folder(address, "corpus.directory")
    mirror = mirror_of(folder)
    assert mirror is not None
    name = folder.relative_to(mirror.folder).as_posix()
    mirror.need("" if name == "." else f"{name}/")
    return folder


def mirror_of(path: Path) -> Mirror | None:
    """The mirror in whose local folder a path is."""
    return next((each for folder, each in _mirrors.items() if path.is_relative_to(folder)), None)


def address_of(path: Path) -> str | None:
    """The address of what a path in such a folder stands for; None: it is a path as any."""
    mirror = mirror_of(path)
    if mirror is None:
        return None
    name = path.relative_to(mirror.folder).as_posix()
    return mirror.address if name == "." else join(mirror.address, name)


def given(path: Path) -> str:
    """A path as any process can use it: the address that it stands for, or the path itself."""
    return address_of(path) or str(path)


def as_given(text: str) -> str:
    """The text with addresses for the local folders that stand for them, on whichever node."""
    for address in _addresses:
        folder = rf"[^\s'\":,;()=]*/mirrors/{_key(address)}-[^/\s]*/{re.escape(name_of(address))}"
        text = re.sub(folder, lambda _, shown=address: shown, text)  # type: ignore[misc]
    return text


@contextlib.contextmanager
def folder_on_worker(run: str, rank: int, owner: Owner | None) -> Iterator[Path]:
    """The folder of a run in a worker's process; at an address: with what it goes on from.

    All workers note events, each in a file of its own; the first writes everything else that is theirs.

    Args:
        run: its path or address.
        rank: of the worker.
        owner: the address that its driver has claimed, which may be that of a whole sweep, and the claim's token.

    Raises:
        UserError: the storage has not answered for long, or another driver has taken the address over.
    """
    only_read()
    if not names_storage(run):
        yield Path(run)
        return
    own = re.compile(BY_WORKERS.pattern if rank == 0 else f"events-{rank}.jsonl")
    mirror = Mirror(run, "--run-dir", _new_folder(run), own.fullmatch)
    if owner is not None:
        mirror.claim = Claim(mirror.filesystem, open_address(owner[0], "--run-dir")[1].rstrip("/"), owner[0])
        mirror.claim.token = owner[1]
    mirror.patiently(
        lambda: mirror.fetch(
            wanted=lambda name: not NOT_FETCHED.fullmatch(name) and not NOT_FOR_WORKERS.fullmatch(name)
        )
    )
    _mirrors[mirror.folder] = mirror
    mirror.start(lambda: mirror.fetch(wanted=lambda name: name == STOP, recursive=False) if rank == 0 else None)
    try:
        yield mirror.folder
    finally:
        close_folders()


def only_read() -> None:
    """Says that this process does a part of the work of another one: corpora are read from one copy a node."""
    global _only_reads
    _only_reads = True


def file_at(place: str) -> Path:
    """The local file of a path or address, as `given` names it.

    Raises:
        UserError: the storage cannot be reached, or has no such file.
    """
    if not names_storage(place):
        return Path(place)
    return cached_file(place) if _only_reads else local_folder(place, "--run-dir")


def attach(address: str, folder: Path) -> None:
    """Has this process read an address in the folder of another process of this machine, which writes there."""
    if mirror_of(folder) is None:
        _mirrors[folder] = Mirror(address, "--run-dir", folder, lambda name: False)


def carry(folder: Path) -> None:
    """Sees to it that what this process has written of a run is at its address, if it has one.

    Raises:
        UserError: the storage has not answered for long, or another process has taken the address over.
    """
    if mirror := mirror_of(folder):
        mirror.patiently(mirror.carry)


def put(folder: Path) -> None:
    """Brings what is new in a folder to its address, for other processes to find.

    Raises:
        UserError: the storage has not answered for long.
    """
    if mirror := mirror_of(folder):
        mirror.patiently(lambda: mirror.put(folder))


def present(file: Path) -> Path:
    """A file that another process may have put to its address: it is brought where it is not here."""
    if (mirror := mirror_of(file)) and not file.exists():
        mirror.patiently(lambda: mirror.bring(file))
    return file


def present_folder(folder: Path) -> Path:
    """The same of the files of a folder, some of which may be here."""
    if mirror := mirror_of(folder):
        mirror.patiently(lambda: mirror.bring(folder))
    return folder


def refresh(folder: Path) -> None:
    """Brings what another process has carried to the address of a folder since, if it has one.

    Raises:
        UserError: the storage has not answered for long.
    """
    if mirror := mirror_of(folder):
        mirror.patiently(lambda: mirror.fetch(f"{folder.relative_to(mirror.folder).as_posix()}/"))


class Lent:
    """For the time in which workers train a run: what is theirs is followed here, and is all here at the end.

    Of a folder that stands for no address it does nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.owner: Owner | None = None
        """By which workers tell whether the address is still their driver's."""
        self._folder, self._mirror = folder, mirror_of(folder)
        self._over = threading.Event()
        if self._mirror is None:
            return
        self._mirror.patiently(self._read_owner)
        name = folder.relative_to(self._mirror.folder).as_posix()
        self._prefix = "" if name == "." else f"{name}/"
        carry(folder)
        (folder / TRAINING).touch()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="distmeta-follow")
        self._thread.start()

    def end(self) -> None:
        """Brings what the workers have left; without effect the second time.

        Raises:
            UserError: the storage has not answered for long.
        """
        if self._mirror is None or self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        mirror, prefix = self._mirror, self._prefix
        mirror.patiently(lambda: mirror.fetch(prefix, lambda name: BY_WORKERS.fullmatch(name[len(prefix) :])))
        (self._folder / TRAINING).unlink(missing_ok=True)

    def _read_owner(self) -> None:
        assert self._mirror is not None
        if token := self._mirror.claim.owner_token():
            self.owner = self._mirror.address, token

    def _follow(self) -> None:
        assert self._mirror is not None
        prefix = self._prefix
        while not self._over.wait(INTERVAL):
            with contextlib.suppress(OSError):  # whoever carries tells of that
                self._mirror.fetch(prefix, lambda name: FOLLOWED.fullmatch(name[len(prefix) :]), recursive=False)


def close_folders() -> None:
    """Carries what is left, and removes the local folders: at the end of a process.

    Raises:
        UserError: something could not be carried; its folder stays.
    """
    while _temporary:
        folder = _temporary.pop()
        if mirror := _mirrors.pop(folder, None):
            try:
                mirror.stop()
            except UserError as error:  # out of the way of `_new_folder`, which clears away what ended processes left
                kept = folder.parent.rename(cache_root() / f"not-carried-{folder.parent.name}")
                raise UserError(str(error).replace(str(folder), str(kept / folder.name))) from None
        shutil.rmtree(folder.parent, ignore_errors=True)
    _mirrors.clear()


def _is_drivers(folder: Path, name: str) -> bool:
    """Whether a file is not that of workers which train just now the run in `folder`, or one in a folder of it."""
    parts = name.split("/")
    return not any(
        BY_WORKERS.fullmatch("/".join(parts[depth:])) and folder.joinpath(*parts[:depth], TRAINING).exists()
        for depth in range(len(parts))
    )


def _new_folder(address: str) -> Path:
    base = cache_root() / "mirrors"
    base.mkdir(exist_ok=True, mode=0o700)
    for left in base.glob(f"*-{machine_name()}-*"):  # by processes that were killed
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = base / f"{_key(address)}-{uuid.uuid4().hex[:6]}-{machine_name()}-{os.getpid()}" / name_of(address)
    folder.mkdir(parents=True)
    _temporary.append(folder)
    _addresses.append(address)
    return folder


def _key(address: str) -> str:
    return hashlib.blake2b(address.encode(), digest_size=8).hexdigest()
