"""Which worker the others wait for, as the watchdog makes it out from what they say. Without a cluster."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import FailureConfig, WorkerGroupError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

from distmeta.train.failures import Failures
from distmeta.train.pulse import PULSE, Pulse, stack
from distmeta.train.watchdog import Watchdog, watchdogs

WAITS = ["/x/distmeta/train/loop.py:9 in train", "/x/torch/distributed/distributed_c10d.py:7 in all_reduce"]
HANGS = ["/x/distmeta/train/loop.py:5 in train", "/x/distmeta/train/work.py:3 in take", "/lib/socket.py:1 in read"]
RUNNING = WorkerGroupPollStatus({rank: WorkerStatus(running=True) for rank in range(2)})


class Told(Watchdog):
    """One that is told what the workers say, where the other one asks them."""

    def __init__(self, timeout: float, events: Path, stacks: list[list[str]]) -> None:
        super().__init__(timeout, events)
        self.stacks, self.silent_since, self.at_work = stacks, {}, set[int]()
        metadata = [SimpleNamespace(pid=40 + rank, node_ip=f"10.0.0.{rank}") for rank in range(2)]
        workers = [SimpleNamespace(metadata=each) for each in metadata]
        self.after_worker_group_training_start(SimpleNamespace(get_workers=lambda: workers))

    def _collect(self, now: float) -> None:
        self._answered = [self.silent_since.get(rank, now) for rank in range(2)]

    def _ask_stacks(self, ranks: list[int]) -> dict[int, list[str]]:
        for rank in self.at_work:
            self.stacks[rank] = [*self.stacks[rank], "elsewhere"]
        return {rank: self.stacks[rank] for rank in ranks}

    def hear(self, *said: dict[str, Any]) -> None:
        """Both workers say these of themselves."""
        self._seen = [Pulse().look() | each for each in said]
        self._next = 0.0
        self.after_worker_group_poll_status(RUNNING)


def step(seconds: float, **more: Any) -> dict[str, Any]:
    return {"doing": "outer step 12", "is_step": True, "seconds": seconds, "longest_step": 1.0} | more


def events(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_worker_that_does_not_answer_is_lost(tmp_path: Path):
    watchdog = Told(60, tmp_path / "events", [WAITS, HANGS])
    watchdog.silent_since = {1: time.monotonic() - 59}
    watchdog.hear(step(59), step(0))
    watchdog.silent_since = {1: time.monotonic() - 61}
    with pytest.raises(WorkerGroupError) as caught:
        watchdog.hear(step(61), step(0))
    (text,) = map(str, caught.value.worker_failures.values())
    assert text == (
        "worker 1 (process 41 on node 10.0.0.1) has not answered for 61 s, since outer step 12: it is stopped or "
        "cut off"
    )


def test_a_worker_that_starts_has_longer_to_answer(tmp_path: Path):
    watchdog, start = Told(60, tmp_path / "events", [HANGS, HANGS]), {"doing": "the start"}
    watchdog.silent_since = {1: time.monotonic() - 299}
    watchdog.hear(start, start)
    watchdog.silent_since = {1: time.monotonic() - 301}
    with pytest.raises(WorkerGroupError):
        watchdog.hear(start, start)


def test_of_workers_that_stand_still_the_one_that_waits_for_nobody_is_lost(tmp_path: Path):
    """Its stack is told, and it counts as a lost worker does."""
    watchdog = Told(60, tmp_path / "events", [WAITS, HANGS])
    watchdog.hear(step(60.5), step(60.5))
    with pytest.raises(WorkerGroupError) as caught:
        watchdog.hear(step(61), step(61))
    policy = Failures(FailureConfig(max_failures=1), tmp_path / "events")
    assert policy.make_decision(caught.value) is FailureDecision.RETRY
    (event,) = (json.loads(line) for line in (tmp_path / "events").read_text().splitlines())
    assert event["text"] == (
        "worker 1 (process 41 on node 10.0.0.1) has made no step for 61 s: it stands still in outer step 12 "
        "(distmeta/train/work.py:3 in take); all workers are started again (loss 1 of 1 that train.max_failures allows)"
    )
    assert "socket.py:1 in read" in event["details"]


def test_of_workers_that_make_no_step_the_one_that_is_at_work_is_lost(tmp_path: Path):
    """The others wait for it, as on GPUs, where a wait is not to be seen."""
    watchdog = Told(60, tmp_path / "events", [HANGS, HANGS])
    watchdog.at_work = {0}
    watchdog.hear(step(61), step(61))
    with pytest.raises(WorkerGroupError) as caught:
        watchdog.hear(step(61), step(61))
    assert list(caught.value.worker_failures) == [0]


def test_workers_that_are_all_at_work_are_slow(tmp_path: Path):
    watchdog = Told(60, tmp_path / "events", [HANGS, HANGS])
    watchdog.at_work = {0, 1}
    for _ in range(3):
        watchdog.hear(step(61), step(61))
    assert events(tmp_path / "events") == ["no worker has made a step for 61 s, though all are at work"]


@pytest.mark.parametrize(
    "said",
    [
        [step(59), step(59)],
        [step(61, longest_step=20.0), step(61)],  # five times the longest is more than a minute
        [step(61), {"doing": "the validation after outer step 12", "seconds": 61}],
        [{"doing": "the start", "seconds": 4000}] * 2,
        [step(61, is_step=False)] * 2,  # the first step of a process
    ],
)
def test_what_may_take_long_is_not_ended(said: list[dict[str, Any]], tmp_path: Path):
    watchdog = Told(60, tmp_path / "events", [HANGS, HANGS])
    for _ in range(2):
        watchdog.hear(*said)


def test_what_takes_long_beside_the_steps_is_told_once(tmp_path: Path):
    watchdog = Told(60, tmp_path / "events", [HANGS, HANGS])
    for _ in range(2):
        watchdog.hear(step(5), {"doing": "the checkpoint of outer step 12", "seconds": 70})
    said = "worker 1 (process 41 on node 10.0.0.1) has been at the checkpoint of outer step 12 for 70 s"
    assert events(tmp_path / "events") == [said]
    watchdog.hear(*[{"doing": "the start", "seconds": 61}] * 2)
    assert events(tmp_path / "events")[1:] == ["2 workers have been at the start for 61 s"]


def test_a_slow_worker_is_told_once(tmp_path: Path):
    watchdog = Told(60, tmp_path / "events", [HANGS, HANGS])
    for slow in (0.5, 2.0, 2.0):
        watchdog.hear(step(1, work=0.2), step(1, work=slow))
    said = (
        "worker 1 (process 41 on node 10.0.0.1) takes 2 s for its share of a step, the others 0.2 s: they wait for it"
    )
    assert events(tmp_path / "events") == [said]


def test_there_is_none_where_it_is_switched_off(tmp_path: Path):
    assert not watchdogs(0.0, tmp_path)


def test_the_first_step_of_a_process_is_no_measure():
    pulse = Pulse()
    pulse.at("outer step 7", is_step=True)
    assert not pulse.look()["is_step"]
    pulse.at("outer step 8", is_step=True)
    assert pulse.look()["is_step"]
    assert not pulse.look()["longest_step"]
    time.sleep(0.01)
    pulse.at("the end")
    assert pulse.look()["longest_step"] >= 0.01


def test_a_worker_says_where_the_thread_is_that_trains():
    is_over = threading.Event()

    def train() -> None:
        PULSE.at("outer step 1")
        is_over.wait()

    thread = threading.Thread(target=train)
    thread.start()
    while PULSE.thread != thread.ident:
        time.sleep(0.001)
    assert any(call.endswith("in train") and "test_watchdog.py" in call for call in stack())
    is_over.set()
    thread.join()
