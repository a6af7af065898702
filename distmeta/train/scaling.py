"""How many workers a run has: as many as the cluster has room for, from the fewest to the most of its setting.

Runs in Ray's controller. Ray's own policies count on a list of nodes that may be 20 s old, wait for room without a
word, and start elastic workers again from whichever checkpoint there is. This one looks at the nodes as they are, says
what it waits for, and asks the workers for a checkpoint before they are started again, so that no step is done twice.
"""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray._private.state import available_resources_per_node, state
from ray.exceptions import RayError
from ray.train.v2._internal.execution.controller.state import RestartingState
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingPolicy
from ray.util import placement_group_table

from distmeta.cluster.growth import refused_requests, whole_workers
from distmeta.cluster.nodes import usable_nodes
from distmeta.errors import UserError
from distmeta.train.events import note
from distmeta.train.restart import StoppedWaiting, ask

LOOK = 2.0
"""Seconds between two looks for nodes that are about to be taken away."""

GROW = 20.0
"""Seconds between two looks for room for more workers, whose start costs about as much."""

SETTLE = 3.0
"""Seconds of a wait before it is told: what was used by the workers before is not free at once."""

REPEAT = 120.0
"""Seconds after which a wait is told again."""


class Scaling(ScalingPolicy):
    """Decides how many workers there are.

    Args:
        scaling_config: Ray's.
        events: the file of events.
        stop_request: while this file is there, no worker is waited for.
        limit: the longest wait for nodes (seconds).
    """

    def __init__(self, scaling_config: Any, events: Path, stop_request: Path, limit: float) -> None:
        super().__init__(scaling_config)
        self._events, self._stop_request, self._limit = events, stop_request, limit
        self._each: Mapping[str, float] = scaling_config._resources_per_worker_not_none
        self._fewest, self._most = scaling_config.min_workers, scaling_config.max_workers
        self._requested = self._most
        self._group: Any = None  # of Ray: the workers that run, or ran last
        self._is_restart = False
        self._workers = 0  # that there were before
        self._asked: Any = None  # the workers that are asked to end
        self._looked = self._grown = float("-inf")
        self._waiting: float | None = None
        self._told = 0.0

    def _get_num_workers_for_resource_request(self) -> int:
        return self._requested

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Notes whether there are workers that hold what is about to be free."""
        self._is_restart = isinstance(current_state, RestartingState)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """The workers that were, if any, are about to be ended."""
        self._group = None

    def make_decision_for_non_running_worker_group(self) -> NoopDecision | ResizeDecision:
        """Starts as many workers as there is room for, or waits.

        Raises:
            UserError: there was no room for the fewest for longer than the limit, or there can be none.
            StoppedWaiting: a stop was requested meanwhile.
        """
        self._maybe_send_resource_request()
        try:
            room = self._room()
        except RayError:  # the head node does not answer now, as while it is started again
            room = 0
        if room < self._fewest:
            self._wait(room)
            return NoopDecision()
        self._waiting = None
        workers = min(room, self._most)
        self._tell(workers)
        self._workers = workers
        return ResizeDecision(num_workers=workers, resources_per_worker=dict(self._each))

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> NoopDecision:
        """Asks workers whose node is about to be taken away, or that could be more, to leave a checkpoint and end."""
        self._maybe_send_resource_request()
        if self._group is not worker_group_state:
            self._group, self._grown = worker_group_state, time.monotonic()
        try:
            reason = self._reason_to_restart() if self._asked is not self._group else ""
        except RayError:  # see above; workers do without the head node
            return NoopDecision()
        if reason:
            self._asked = self._group
            note(self._events, 0, f"{reason}: leaving a checkpoint after this step")
            for worker in self._group.workers:
                worker.execute_async(ask)
        return NoopDecision()

    def _reason_to_restart(self) -> str:
        now = time.monotonic()
        if now - self._looked < LOOK:
            return ""
        self._looked = now
        leaving = state.get_draining_nodes()
        if nodes := {w.metadata.node_ip for w in self._group.workers if w.metadata.node_id in leaving}:
            return f"the node {' and '.join(sorted(nodes))} is about to be taken away"
        if self._workers == self._most or now - self._grown < GROW:
            return ""
        self._grown = now
        room = min(self._room(), self._most)
        return f"there is room for {room} workers now" if room > self._workers else ""

    def _room(self) -> int:
        """Workers that there is room for, those that run included."""
        own: Counter[str] = Counter()
        if self._group is not None:
            group = self._group.placement_group_handle.placement_group
            own.update(placement_group_table(group)["bundles_to_node_id"].values())
        # Of workers that were lost before they were seen here what they hold is not known, but all of it will be free.
        in_use = self._group is not None or not self._is_restart
        free = available_resources_per_node()
        room = 0
        for node in usable_nodes():
            name = node["NodeID"]
            has = free.get(name, {}) if in_use else node["Resources"]
            room += whole_workers(has, self._each, own[name])
        return room

    def _wait(self, room: int) -> None:
        """Says what is waited for, at first and now and then, for a moment in which Ray does nothing else."""
        if self._stop_request.exists():
            raise StoppedWaiting("stopped while there was no room for its workers; --resume goes on")
        now = time.monotonic()
        if self._waiting is None:
            self._waiting, self._told = now, float("-inf")
        waited = now - self._waiting
        wanted = f"room for {count(self._fewest)} of {described(self._each)}, and the cluster has it for {room} now"
        if waited >= self._limit:
            raise UserError(
                f"train.wait_for_nodes: {waited:.0f} s have gone without {wanted}: see whether nodes can come, or "
                "lower train.num_workers; --resume goes on from the newest checkpoint"
            )
        if waited >= SETTLE:
            if now - self._told >= REPEAT:
                self._told = now
                wait = f"waiting since {waited:.0f} s for {wanted}; {self._limit:.0f} s at the most"
                note(self._events, 0, f"{wait} (train.wait_for_nodes)")
            self._heed_refusal(wanted)
        time.sleep(1.0 if waited >= SETTLE else 0.2)

    def _heed_refusal(self, wanted: str) -> None:
        """Asks for fewer workers where the autoscaler cannot have the most, of which it then starts none."""
        try:
            is_refused = self._requested in refused_requests()
        except RayError:
            return
        if not is_refused:
            return
        if self._requested == self._fewest:
            raise UserError(
                f"train.num_workers: the cluster can never have {wanted}, as its autoscaler says: lower it, or let the "
                "cluster have more nodes"
            )
        self._requested = self._fewest
        self._send_resource_request()

    def _tell(self, workers: int) -> None:
        """Says how many workers there are where these are others than one expects."""
        if not self._workers and workers < self._most:
            text = f"beginning with {count(workers)}: the cluster has no room for {self._most} yet"
        elif self._workers and workers < self._workers:
            text = f"going on with {count(workers)} instead of {self._workers}: a node is gone"
        elif self._workers and workers > self._workers:
            text = f"going on with {count(workers)} instead of {self._workers}: there is room again"
        else:
            return
        note(self._events, 0, text)


def described(each: Mapping[str, float]) -> str:
    """What a worker takes, as text."""
    return " and ".join(f"{amount:g} {name}{'s' if amount != 1 else ''}" for name, amount in each.items())


def count(workers: int) -> str:
    """So many workers, as text."""
    return f"{workers} worker{'s' if workers != 1 else ''}"
