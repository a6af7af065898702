"""A Ray cluster of this machine alone, for the time of a command, which signals to the command do not reach."""

import logging
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distmeta.errors import UserError
from distmeta.signals import keep_sigterm_handler

logger = logging.getLogger(__name__)

ATTEMPTS = 2
"""How often a node is started that does not come up in the half minute that Ray gives it, as on a busy machine."""

FULLEST = 0.95
"""Share of a disk in use up to which Ray puts objects there that memory does not hold."""

LONGEST_SOCKET = 107
"""Bytes of the path of a Unix socket."""

SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest that Ray adds to the folder for temporary files."""


@contextmanager
def head_node(cpus: int) -> Iterator[None]:
    """Ray on this machine, with this process connected to it. All of it ends with this process, however that ends.

    Raises:
        UserError: it cannot be started here.
    """
    import ray

    with keep_sigterm_handler():
        raylet = _start(cpus)
    # Of what Ray starts, the two agents of a node are in the process group of its raylet, and take a minute to see that
    # they are alone. This one waits for the end of its input, which is the end of this process.
    command = ["sh", "-c", f"read _; kill -s KILL -- -{raylet.pid}"]
    watch = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        ray.shutdown()
        watch.communicate()


def quietly(**options: Any) -> None:
    """`ray.init` without anything of Ray's between the words of this process: it stays in Ray's log files."""
    import ray
    from ray._private import worker

    # A thread of Ray's that prints to stdout, on no condition, what raylets tell of processes; a loss is told by us.
    worker.listen_error_messages = lambda *_: None
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


def _start(cpus: int) -> subprocess.Popen[bytes]:
    """Starts it; returns its raylet."""
    import ray

    folder = _temporary_folder()
    _warn_of_full_disk(folder)
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # A token of this command alone: what Ray made itself it would write into the user's home.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for _ in range(ATTEMPTS):
        with _own_sessions() as started:
            try:
                quietly(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=f"{folder}/ray")
                return next(process for process in started if _name(process) == "raylet")
            except BaseException as error:
                ended = [process for process in started if process.poll() is not None]
                for process in started:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                ray.shutdown()
                if not isinstance(error, Exception):
                    raise
                failure = UserError(_explain(error, ended, f"{folder}/ray/session_latest/logs"))
                if ended or "timed out" not in str(error):
                    raise failure from None
    raise failure


def _name(process: subprocess.Popen[bytes]) -> str:
    return Path(process.args[0]).name  # type: ignore[index,arg-type]


@contextmanager
def _own_sessions() -> Iterator[list[subprocess.Popen[bytes]]]:
    """What Ray starts meanwhile is in sessions of its own, so that a signal to the process group of this command, or
    the end of its terminal, reaches the command alone. It still ends with this process: Ray asks the kernel for that.

    Yields the list of the processes that are started.
    """
    from ray._private import services

    started: list[subprocess.Popen[bytes]] = []
    original = services.ConsolePopen

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(original(*arguments, start_new_session=True, **options))
        return started[-1]

    services.ConsolePopen = popen  # type: ignore[assignment,misc]
    try:
        yield started
    finally:
        services.ConsolePopen = original  # type: ignore[misc]


def _temporary_folder() -> str:
    """A folder that can be written and whose path leaves room for that of a socket."""
    chosen = os.environ.get("RAY_TMPDIR")
    try:
        candidates = [chosen] if chosen else [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
    except FileNotFoundError:
        candidates = []
    for folder in candidates:
        is_short = len(os.fsencode(f"{folder}/{SOCKET}")) <= LONGEST_SOCKET
        nearest = Path(folder) / "ray" if (Path(folder) / "ray").exists() else Path(folder)
        if is_short and os.access(nearest, os.W_OK | os.X_OK):
            return folder
    longest = LONGEST_SOCKET - len(SOCKET) - 1
    raise UserError(
        f"Ray: {'RAY_TMPDIR' if chosen else 'no folder for temporary files'} can{'not' if chosen else ''} hold its "
        f"sockets: set RAY_TMPDIR to a folder that can be written, with a path of at most {longest} bytes"
    )


def _warn_of_full_disk(folder: str) -> None:
    """Says what Ray says in its logs alone: that it will put nothing more there."""
    disk = shutil.disk_usage(folder)
    if disk.used / (disk.used + disk.free) > FULLEST:
        logger.warning(
            "Ray keeps its files in %s, of which %.0f%% are in use: from %.0f%% on it takes no more objects there, and "
            "may give up a large corpus; make room, or set RAY_TMPDIR to another folder",
            folder,
            100 * disk.used / (disk.used + disk.free),
            100 * FULLEST,
        )


def _explain(error: Exception, ended: list[subprocess.Popen[bytes]], logs: str) -> str:
    """Why Ray did not start, in a line."""
    if ended:
        name = _name(ended[0])
        return (
            f"Ray could not be started on this machine: its {name} ended at once{_last_words(Path(logs), name)}; "
            f"is there room in {logs}, and memory? Its logs are there"
        )
    if "timed out" in str(error):
        return (
            f"Ray could not be started on this machine: it did not come up in half a minute, {ATTEMPTS} times over; "
            f"try again when the machine has less to do, or look into {logs}"
        )
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"Ray could not be started on this machine: {line}"


def _last_words(logs: Path, name: str) -> str:
    """The last line that a process of Ray has left."""
    for file in (logs / f"{name}.err", logs / f"{name}.out"):
        with suppress(OSError):
            if lines := file.read_text(errors="replace").strip().splitlines():
                return f" ({lines[-1][:200]})"
    return ""
