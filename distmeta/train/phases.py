"""Where the time of a run goes."""

import time
from collections.abc import Mapping
from typing import Any

STEP_PHASES = ("data", "inner", "outer", "communication", "optimizer")
"""Phases of every outer step."""
OWN_PHASES = ("data", "inner", "outer")
"""Those of them in which a worker waits for no other, where the weights are whole."""
PHASES = (*STEP_PHASES, "validation", "checkpoint")


class PhaseClock:
    """The seconds that each phase of one outer step takes on one worker, from when it is made.

    data: waited for work. inner: adaptation on support sets. outer: gradients of query sets and of language modelling.
    communication: gathering parameters, averaging gradients and adding up metrics, which waits for the slowest worker.
    optimizer: clipping and AdamW.

    A GPU computes on while the program goes on, and its time counts in the phase that first waits for a result. Every
    inner step waits for its loss and clipping waits for the norm, so the end of the last backward pass, and the
    averaging of gradients over several GPUs, may count as optimizer.
    """

    def __init__(self) -> None:
        self.started = self._marked = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def mark(self, phase: str, **parts: float) -> None:
        """Counts the time since the last mark to `phase`, but for those seconds of it that belong to other ones."""
        now = time.perf_counter()
        parts = {**parts, phase: now - self._marked - sum(parts.values())}
        for name, seconds in parts.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._marked = now


class Totals:
    """Adds the time of a run up in its progress: `wall_seconds`, `worker_seconds` and `phase_seconds`."""

    def __init__(self, progress: dict[str, Any], world_size: int) -> None:
        self._progress, self._world_size = progress, world_size
        self._counted = time.perf_counter()

    def count(self, seconds: Mapping[str, float] | str) -> None:
        """Counts the time since the last call: the phases took these seconds of it, or the one named here took all."""
        now = time.perf_counter()
        elapsed, self._counted = now - self._counted, now
        self._progress["wall_seconds"] += elapsed
        self._progress["worker_seconds"] += elapsed * self._world_size
        for phase, spent in ({seconds: elapsed} if isinstance(seconds, str) else seconds).items():
            self._progress["phase_seconds"][phase] += spent
