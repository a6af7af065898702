"""What a worker is doing and since when, for whoever asks its process while a thread of it trains."""

import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from typing import Any

WORK = 20
"""Steps over which the time of a worker's own work is averaged."""


START = "the start"


@dataclass
class Pulse:
    """Kept by the thread that trains."""

    doing: str = START
    is_step: bool = False
    """Whether it is a step of the usual kind, neither the first one of the process nor anything beside the steps."""
    since: float = field(default_factory=time.monotonic)
    longest_step: float = 0.0
    steps: int = 0
    work: deque[float] = field(default_factory=lambda: deque(maxlen=WORK))
    thread: int | None = None

    def at(self, doing: str, *, is_step: bool = False) -> None:
        """Begins something else; the first step of a process, which may build much, is not taken for a step."""
        now = time.monotonic()
        if self.is_step:
            self.longest_step = max(self.longest_step, now - self.since)
        self.steps += is_step
        self.thread = threading.get_ident()
        self.doing, self.since, self.is_step = doing, now, is_step and self.steps > 1

    def worked(self, seconds: float) -> None:
        """Notes what this worker's share of a step took, without what it waited for the others."""
        self.work.append(seconds)

    def look(self) -> dict[str, Any]:
        """What it is `doing`, for how many `seconds`, whether that `is_step`, the `longest_step` so far and the mean
        `work` of the last steps (seconds; None: they are too few)."""
        return {
            "doing": self.doing,
            "seconds": time.monotonic() - self.since,
            "is_step": self.is_step,
            "longest_step": self.longest_step,
            "work": sum(self.work) / WORK if len(self.work) == WORK else None,
        }


PULSE = Pulse()
"""That of this process."""


def look() -> dict[str, Any]:
    """What the worker of this process does; see `Pulse.look`."""
    return PULSE.look()


def stack() -> list[str]:
    """Where the thread that trains is, outermost call first: one `file:line in function` each."""
    frame = sys._current_frames().get(PULSE.thread or 0)
    return [f"{each.filename}:{each.lineno} in {each.name}" for each in traceback.extract_stack(frame)] if frame else []
