"""Who writes in a folder: one process at a time, on this machine and on all that share the folder.

The owner keeps a lease (`filelock.SoftFileLease`): a file that is made atomically, names host, process and when that
process started, and is touched every few seconds. An owner that is no more holds nothing: on the same machine it is
looked for among the processes, on another one its file is not touched any longer. Whatever is to take a folder over
from an owner that still lives has its place in `own`. At an address a claim (`distmeta.store.claim`) does the same, and
what is written goes by the local folder that stands for it.
"""

import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import LeaseCompromise, LeaseSettingsMismatch, SoftFileLease, Timeout

from distmeta.cluster.machine import machine_name
from distmeta.errors import UserError, first_line
from distmeta.files import write_json
from distmeta.store.folders import mirror_of
from distmeta.store.mirror import Mirror

LOCK, OWNER = ".lock", ".owner.json"
"""The lease, and what its holder says of itself. Neither is there when nobody writes."""

HEARTBEAT = 3.0
"""Seconds between two touches of a lease."""

EXPIRY = 60.0
"""Seconds without one after which the owner on another machine is taken for lost."""


@dataclass(frozen=True)
class Owner:
    """What the owner of a folder says of itself."""

    host: str
    pid: int
    command: str
    since: str
    machine: str
    """See `machine_name`."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command}), since {self.since}"


_held: dict[Path, int] = {}
"""The folders that this process owns, and how often it has asked for each."""
_guard = threading.Lock()


@contextmanager
def own(path: Path) -> Iterator[None]:
    """Makes this process the only one that writes in a folder, which is made where it is not there.

    A folder that is empty afterwards is removed again, if it was made here. Within the process the same folder may be
    owned several times over. A trial is owned with its sweep, a baseline with its run.

    Raises:
        UserError: another process writes there, which is named, or the folder cannot be written in.
    """
    folder = _whole(path.resolve())
    with _guard:
        _held[folder] = _held.get(folder, 0) + 1
        is_first = _held[folder] == 1
    lease = None
    made: list[Path] = []
    mirror = mirror_of(folder)
    is_claimed = False
    try:
        if is_first:
            made = _make(folder)
            lease = _acquire(folder)
            if mirror is not None and mirror.folder == folder:
                _claim(mirror)
                is_claimed = True
        yield
    finally:
        if mirror is not None and is_claimed:
            try:
                mirror.stop()
            finally:
                mirror.claim.release()
        with _guard:
            _held[folder] -= 1
            if not _held[folder]:
                del _held[folder]
        if lease is not None:
            (folder / OWNER).unlink(missing_ok=True)
            with suppress(OSError):  # what cannot be removed any more is found to be nobody's
                lease.release()
        for each in made:
            with suppress(OSError):  # not empty
                each.rmdir()


def refuse_second(path: Path) -> None:
    """Refuses a folder that another process writes in, before the libraries are loaded that writing takes.

    Raises:
        UserError: see `own`.
    """
    if (mirror := mirror_of(path)) is not None:
        mirror.claim.refuse_living(_say)
    elif path.exists():
        with own(path):
            pass


def _whole(path: Path) -> Path:
    """The folder of the whole that a run belongs to: it writes in its parts, too."""
    if path.parent.name == "trials" and (path / "trial.json").exists():
        return path.parent.parent
    if path.name in ("language-model", "multitask") and (path.parent / "config.yaml").exists():
        return path.parent
    return path


def _make(folder: Path) -> list[Path]:
    """Makes a folder; returns those that were not there, innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: no folder can be made there ({error.strerror})") from None
    return missing


def _acquire(folder: Path) -> SoftFileLease:
    lease = SoftFileLease(
        folder / LOCK,
        lease_duration=EXPIRY,
        heartbeat_interval=HEARTBEAT,
        thread_local=False,
        on_compromise=lambda loss: _reacquire(lease, folder, loss),
    )
    touched, since, is_told = _touched(folder), time.monotonic(), False
    while True:
        try:
            lease.acquire(timeout=0)
            break
        except (Timeout, LeaseSettingsMismatch):
            pass
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
        owner = _owner(folder)
        waited = time.monotonic() - since
        # Of a process of this machine the lease itself knows that it is alive; of another it is seen to be.
        is_here = owner is not None and owner.machine == machine_name()
        is_alive = touched is not None and _touched(folder) not in (touched, None)
        if (is_here and waited > 1) or is_alive or waited > 2 * EXPIRY:
            who = f"{owner} is writing" if owner else f"another process holds {LOCK}"
            raise UserError(f"{folder}: {who} there; wait for its end, or give another folder")
        if not is_told and waited > 2 * HEARTBEAT:
            is_told = True
            _say(f"{folder}: {owner or LOCK} gives no sign; waiting up to {EXPIRY:.0f} s")
        touched = touched or _touched(folder)
        time.sleep(0.2)
    try:
        write_json(folder / OWNER, vars(_this_process()))
    except OSError:
        lease.release()
        raise
    return lease


def _reacquire(lease: SoftFileLease, folder: Path, loss: LeaseCompromise) -> None:
    """Takes up again what was lost, or ends this process, of which the folder is no longer: runs beside its work.

    A lease is lost where its file was removed, or could not be touched for long, or where the process slept for so
    long that another one has taken over.
    """
    with suppress(OSError):
        lease.release(force=True)
    while True:
        if folder not in _held:  # given back meanwhile
            return
        try:
            lease.acquire(timeout=0)
            if folder not in _held:  # given back while it was taken, when there was nothing to release
                lease.release(force=True)
            return
        except (Timeout, LeaseSettingsMismatch):
            break
        except OSError:  # the folder cannot be reached; when it can be again, it is seen whose it is
            time.sleep(HEARTBEAT)
    _say(f"{folder}: lost to {_owner(folder) or 'another process'} ({loss.reason})")
    os._exit(1)  # not in good order, in which things are written


def _claim(mirror: Mirror) -> None:
    def lost(other: str) -> None:
        _say(f"{mirror.address}: lost to {other}")
        os._exit(1)

    try:
        mirror.claim.take(str(_this_process()), _say, lost)
    except OSError as error:
        raise UserError(f"{mirror.key}: {mirror.address}: cannot be written in: {first_line(error)}") from None
    mirror.patiently(mirror.fetch)
    mirror.start()


def _say(text: str) -> None:
    print(f"distmeta: {text}", file=sys.stderr, flush=True)


def _touched(folder: Path) -> tuple[int, int] | None:
    """Which lease is there, and when it was last touched."""
    try:
        # Opened, since a network's file system asks its server then.
        with (folder / LOCK).open("rb") as file:
            status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _owner(folder: Path) -> Owner | None:
    try:
        values: dict[str, Any] = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return Owner(**values)
    except (OSError, ValueError, TypeError):
        return None


def _this_process() -> Owner:
    name = Path(sys.argv[0]).name
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        command=shlex.join([name.replace("cli.py", "distmeta"), *sys.argv[1:]])[:500],
        since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        machine=machine_name(),
    )
