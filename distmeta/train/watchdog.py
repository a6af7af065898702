"""Finds a worker that stands still while the others wait for it, says which and where, and has it replaced.

It is asked for in Ray's controller, each time that it has looked after its workers, which is where a failure of a
worker comes to light as well: what is raised there goes the way of a lost worker. A worker answers from its main thread
while another one trains, so no thread, process or file is added, and one that cannot answer shows by that.
"""

import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import WorkerGroupError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from distmeta.train.events import note
from distmeta.train.failures import WorkerStalled
from distmeta.train.pulse import START, Pulse, look, stack

TIMES = 5
"""How many times the longest step so far one may take."""

SLOW = 3
"""How many times as long as the others a worker works on its share of a step, to be told of."""

ANSWER = 3.0
"""Seconds in which workers say where they are when they are about to be replaced."""

MOST = 4
"""Workers that are named where several stand still."""

WAITING = ("torch/distributed/", "deepspeed/comm/")
"""What the file of a call is in that waits for other workers."""


class Watchdog(WorkerGroupCallback):
    """See above.

    Args:
        timeout: seconds without a step or an answer after which a worker stands still, at least.
        events: the file of events.
    """

    def __init__(self, timeout: float, events: Path) -> None:
        self._timeout, self._events = timeout, events
        self._workers: list[Any] = []

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """All workers are new."""
        now = time.monotonic()
        self._workers = worker_group.get_workers()
        self._seen: list[dict[str, Any]] = [Pulse().look()] * len(self._workers)
        self._asked: dict[Any, int] = {}
        self._answered = [now] * len(self._workers)
        self._stacks: dict[int, list[str]] = {}
        self._next, self._told = now, set[str]()

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Whatever they do now is no standing still."""
        self._workers = []

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Ray calls it every RAY_TRAIN_HEALTH_CHECK_INTERVAL_S."""
        now = time.monotonic()
        if not self._workers or worker_group_status.errors or now < self._next:
            return
        self._next = now + min(self._timeout / 10, 5.0)
        self._collect(now)
        running = [rank for rank, status in worker_group_status.worker_statuses.items() if status.running]
        limit = max(self._timeout, TIMES * max(seen["longest_step"] for seen in self._seen))
        silent = [rank for rank in running if now - self._answered[rank] > limit * self._patience(rank)]
        stuck = [rank for rank in running if self._seen[rank]["is_step"] and self._seen[rank]["seconds"] > limit]
        if silent:
            self._give_up(silent, {rank: self._silence(rank, now) for rank in silent})
        if stuck and len(stuck) == len(running):
            self._look_closer(running)
        else:
            self._stacks = {}
        self._tell_long(running)
        self._tell_slow(running)

    def _patience(self, rank: int) -> int:
        """While libraries are loaded on a busy machine, and a network is made, a worker may be slow to answer."""
        return TIMES if self._seen[rank]["doing"] == START else 1

    def _collect(self, now: float) -> None:
        """Takes what workers have answered, and asks those again that have."""
        done, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0) if self._asked else ([], [])
        for reference in done:
            rank = self._asked.pop(reference)
            with suppress(RayError):  # it is lost, which Ray's own question tells of
                self._seen[rank], self._answered[rank] = ray.get(reference), now
        pending = set(self._asked.values())
        for rank, worker in enumerate(self._workers):
            if rank not in pending:
                self._asked[worker.execute_async(look)] = rank

    def _look_closer(self, running: list[int]) -> None:
        """Looks twice where they are: one that is elsewhere then is at work."""
        before, self._stacks = self._stacks, self._ask_stacks(running)
        if not before:
            return
        moving = [rank for rank in running if self._stacks.get(rank) != before.get(rank)]
        if len(moving) == len(running):
            text = f"no worker has made a step for {self._seen[0]['seconds']:.0f} s, though all are at work"
            self._tell_once("slow", 0, text)
            return
        blamed = moving or [rank for rank in running if not self._waits(rank)] or running
        self._give_up(blamed, {rank: self._standing(rank) for rank in blamed})

    def _give_up(self, blamed: list[int], why: dict[int, str]) -> None:
        details = "\n\n".join("\n".join([f"worker {rank}:", *calls]) for rank, calls in self._stacks.items())
        failures: dict[int, Exception] = {
            rank: WorkerStalled(f"{self._name(rank)} {why[rank]}") for rank in blamed[:MOST]
        }
        raise WorkerGroupError("\n".join([*map(str, failures.values()), "", details]), failures)

    def _silence(self, rank: int, now: float) -> str:
        seconds = now - self._answered[rank]
        return f"has not answered for {seconds:.0f} s, since {self._seen[rank]['doing']}: it is stopped or cut off"

    def _standing(self, rank: int) -> str:
        seen, own = self._seen[rank], [call for call in self._stacks.get(rank, []) if "/distmeta/" in call]
        where = f" ({own[-1][own[-1].rindex('/distmeta/') + 1 :]})" if own else ""
        return f"has made no step for {seen['seconds']:.0f} s: it stands still in {seen['doing']}{where}"

    def _waits(self, rank: int) -> bool:
        return any(part in call for call in self._stacks.get(rank, []) for part in WAITING)

    def _ask_stacks(self, ranks: list[int]) -> dict[int, list[str]]:
        asked = {self._workers[rank].execute_async(stack): rank for rank in ranks}
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER)
        found = {}
        for reference in done:
            with suppress(RayError):
                found[asked[reference]] = ray.get(reference)
        return dict(sorted(found.items()))

    def _tell_once(self, key: str, rank: int, text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            note(self._events, rank, text)

    def _tell_long(self, running: list[int]) -> None:
        """Says what takes long that is no step: a start, a checkpoint, a validation."""
        long = [
            rank for rank in running if not self._seen[rank]["is_step"] and self._seen[rank]["seconds"] > self._timeout
        ]
        doings = dict.fromkeys(self._seen[rank]["doing"] for rank in long)
        for doing in doings:
            ranks = [rank for rank in long if self._seen[rank]["doing"] == doing]
            who = f"{self._name(ranks[0])} has" if len(ranks) == 1 else f"{len(ranks)} workers have"
            self._tell_once(doing, ranks[0], f"{who} been at {doing} for {self._seen[ranks[0]]['seconds']:.0f} s")

    def _tell_slow(self, running: list[int]) -> None:
        """Says, once, which worker the others always wait for."""
        work = {rank: self._seen[rank]["work"] for rank in running}
        if len(work) < 2 or None in work.values():
            return
        slowest = max(work, key=lambda rank: work[rank])
        others = median(seconds for rank, seconds in work.items() if rank != slowest)
        if work[slowest] > SLOW * others:
            took = f"{work[slowest]:.2g} s for its share of a step, the others {others:.2g} s: they wait for it"
            self._tell_once(f"worker {slowest}", slowest, f"{self._name(slowest)} takes {took}")

    def _name(self, rank: int) -> str:
        metadata = self._workers[rank].metadata
        return f"worker {rank} (process {metadata.pid} on node {metadata.node_ip})"


def watchdogs(timeout: float, events: Path) -> list[Any]:
    """The callbacks of Ray Train's for `train.wait_for_worker`."""
    return [Watchdog(timeout, events)] if timeout else []
