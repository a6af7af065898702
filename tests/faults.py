"""A run on two nodes with a fault in it: what was lost, how long it took to go on, and whether it made a difference."""

import random
import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from tests.commands import DISTMETA, environment, read_rows
from tests.corpora import tiny_config, write_labelled_csv
from tests.two_nodes import ADDRESSES, TwoNodes

STEPS, EVERY = 80, 10
FIRST, LAST = 15, 50
"""Outer steps between which faults happen."""


HANG = """
import os, sys, threading, time
ask = os.path.join(os.path.dirname(__file__), "now")
def watch():
    while not ("distmeta.train.work" in sys.modules and os.path.exists(ask)):
        time.sleep(0.05)
    try:
        os.unlink(ask)
    except FileNotFoundError:
        return
    def take_for_ever(self, step):
        while True:
            time.sleep(1)
    sys.modules["distmeta.train.work"].WorkSource.take = take_for_ever
threading.Thread(target=watch, daemon=True).start()
"""
"""What Python loads when it starts: a worker hangs in its next step once there is a file `now` beside."""


def write_config(folder: Path) -> None:
    """That of a run of half a minute with a worker on each node."""
    write_labelled_csv(folder / "texts.csv")
    tree = tiny_config(
        folder / "texts.csv",
        train={"outer_steps": STEPS, "checkpoint_every": EVERY, "num_workers": 2},
        engine={"zero_stage": 2},
        evaluate={"episodes": 2},
        tracking={"wandb": "disabled"},
    )
    (folder / "hang").mkdir()
    (folder / "hang" / "sitecustomize.py").write_text(HANG)
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))


@dataclass
class Outcome:
    """What became of a run with a fault in it."""

    said: str
    lost: int
    """Outer steps that were done twice."""
    seconds: float
    """From the fault to the next step."""
    steps: list[int]
    losses: list[float]


class Run:
    """A run under way, whose steps are counted as they are written."""

    def __init__(self, nodes: TwoNodes, name: str, *settings: str, node: int = 0) -> None:
        self.path, self._log = nodes.folder / name, nodes.folder / f"{name}.log"
        options = [part for setting in settings for part in ("--set", setting)]
        command = [*DISTMETA, "pretrain", "--config", "run.yaml", "--run-dir", name, *options]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                nodes.command(node, *command),
                env=environment() | {"RAY_ADDRESS": f"{ADDRESSES[0]}:6379"},
                stdout=log,
                stderr=log,
            )
        self._seen: list[tuple[float, int]] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        metrics = self.path / "metrics.jsonl"
        while self._process.poll() is None:
            count = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            if not self._seen or self._seen[-1][1] != count:
                self._seen.append((time.monotonic(), count))
            time.sleep(0.01)

    def said(self) -> str:
        return self._log.read_text()

    def _assert_under_way(self, deadline: float) -> None:
        assert self._process.poll() is None, self.said()[-4000:]
        assert time.monotonic() < deadline, self.said()[-4000:]

    def wait_for_step(self, step: int, timeout: float = 300) -> None:
        deadline = time.monotonic() + timeout
        while not self._seen or self._seen[-1][1] < step:
            self._assert_under_way(deadline)
            time.sleep(0.005)

    def wait_for_line(self, part: str, timeout: float = 200) -> None:
        deadline = time.monotonic() + timeout
        while part not in self.said():
            self._assert_under_way(deadline)
            time.sleep(0.05)

    def wait_for_end(self) -> None:
        self._process.wait(200)

    def end(self) -> None:
        if self._process.poll() is None:
            for process in psutil.Process(self._process.pid).children(recursive=True):  # of nsenter
                process.kill()
        self._process.wait()

    def finish(self, since: float, timeout: float = 500) -> Outcome:
        """Waits until it has trained to its end, its evaluation is left out; the fault was at the time `since`."""
        self.wait_for_line("\nexported to ", timeout)
        self.end()
        after = [each for each in self._seen if each[0] >= since]
        gaps = [later[0] - sooner[0] for sooner, later in zip([(since, 0), *after], after, strict=False)]
        longest = gaps.index(max(gaps)) if gaps else 0
        drops = [a[1] - b[1] for a, b in zip(self._seen, self._seen[1:], strict=False) if b[1] < a[1]]
        rows = read_rows(self.path)
        return Outcome(
            said=self.said(),
            lost=sum(drops),
            seconds=after[longest][0] - since if after else 0.0,
            steps=[row["outer_step"] for row in rows],
            losses=[row["training/query_loss"] for row in rows],
        )


def moment(seed: int) -> int:
    """The outer step after which a fault happens."""
    return random.Random(seed).randint(FIRST, LAST)


def with_fault(
    nodes: TwoNodes, name: str, seed: int, fault: Callable[[Run], None], *settings: str, node: int = 0
) -> Outcome:
    """A run in which the fault happens at a moment drawn from the seed; its command runs on the node."""
    run = Run(nodes, name, *settings, node=node)
    try:
        run.wait_for_step(moment(seed))
        since = time.monotonic()
        fault(run)
        return run.finish(since)
    finally:
        run.end()


def said_of_loss(said: str) -> str:
    """The line that tells of a lost worker."""
    found = re.search(r"^worker \d .*; all workers are started again.*$", said, re.MULTILINE)
    return found[0] if found else ""
