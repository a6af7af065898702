"""An orderly end on a signal: SIGINT (Ctrl-C), SIGTERM (a scheduler, `timeout`) or SIGHUP (the terminal was closed)."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distmeta.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

EXIT_STATUS = 130

TOGETHER = 1.0
"""Seconds in which signals count as one: `timeout` signals the command, and then the whole group that it is in."""

_first: float | None = None
"""When the first signal came (seconds of the monotonic clock); None: there was none."""
_depth = 0


@contextmanager
def interrupted_by_signals(what_is_left: str) -> Iterator[None]:
    """For a whole command: the first signal raises Interrupted where the main thread is, another ends it at once."""

    def act(number: signal.Signals) -> None:
        raise Interrupted(f"stopped by {number.name}; {what_is_left}")

    with _handling(act):
        yield


@contextmanager
def stop_on_signal(
    request_stop: Callable[[], None], what_happens: str, say: Callable[[str], None]
) -> Iterator[threading.Event]:
    """Turns the first signal into a call of `request_stop`; another ends the process at once.

    Yields an event that tells whether there was one. `what_happens` is told to the user at the first.
    """
    stopped = threading.Event()

    def act(number: signal.Signals) -> None:
        stopped.set()
        request_stop()
        say(f"{number.name}: {what_happens}; once more ends at once")

    with _handling(act):
        yield stopped


@contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Keeps what this process does on SIGTERM, where `ray.init` puts a handler of its own, which raises SystemExit."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        raise Interrupted("stopped by SIGTERM while Ray was started; --resume goes on") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def end_with_parent() -> None:
    """For a process that is started to work for another: it is killed when that one ends in whatever way, and leaves to
    it what a Ctrl-C means. To be called first of all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)


@contextmanager
def _handling(act: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Has `act` called on the first signal, unless one came in a context around this one."""
    global _first, _depth

    def handle(number: int, _frame: Any) -> None:
        global _first
        if _first is None:
            _first = time.monotonic()
            act(signal.Signals(number))
        elif time.monotonic() - _first > TOGETHER:
            os._exit(EXIT_STATUS)  # the processes that this one has started end with it

    # What is to outlive its terminal (`nohup`) goes on when that is closed.
    numbers = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            _first = None
        for number, handler in before.items():
            signal.signal(number, handler)
