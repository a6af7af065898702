"""An orderly end on a signal."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_on_signal(
    request_stop: Callable[[], None], what_happens: str, say: Callable[[str], None]
) -> Iterator[threading.Event]:
    """Turns the first SIGINT or SIGTERM into a call of `request_stop`, the next into KeyboardInterrupt.

    Yields an event that tells whether there was one. `what_happens` is told to the user at the first.
    """
    stopped = threading.Event()

    def handle(number: int, _frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        request_stop()
        say(f"{signal.Signals(number).name}: {what_happens}; once more ends at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
