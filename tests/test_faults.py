"""What happens to machines while a run on two nodes is under way: each fault three times, at moments drawn from a seed.

The result has to be that of a run left alone, with no more lost than what was done since a checkpoint. The table of all
of them is printed at the end: `pytest -m slow tests/test_faults.py`.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults import EVERY, STEPS, Outcome, Run, said_of_loss, with_fault, write_config
from tests.two_nodes import TwoNodes, shell, two_nodes

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SEEDS = pytest.mark.parametrize("seed", range(3))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    folder = tmp_path_factory.mktemp("faults")
    write_config(folder)
    with two_nodes(folder) as nodes, small_disk(folder / "disk"):
        nodes.variables["PYTHONPATH"] = f"{folder / 'hang'}:{os.environ.get('PYTHONPATH', ROOT)}"
        # So that the head, started again, knows what there is.
        nodes.variables |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}
        nodes.start_ray(0)
        yield nodes


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own."""
    folder.mkdir()
    shell("mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder))
    try:
        yield
    finally:
        shell("umount", "--lazy", str(folder))


@pytest.fixture
def nodes(cluster: TwoNodes) -> TwoNodes:
    """Both nodes, up."""
    cluster.ensure_ray()
    return cluster


@pytest.fixture(scope="module")
def alone(cluster: TwoNodes) -> list[float]:
    """The losses of a run that nothing happens to."""
    cluster.ensure_ray()
    return Run(cluster, "alone").finish(time.monotonic()).losses


@pytest.fixture(scope="module")
def table(pytestconfig: pytest.Config) -> Iterator[list[str]]:
    rows = ["| fault | seed | steps lost | seconds to go on | largest difference | said |", "| - | - | - | - | - | - |"]
    yield rows
    reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")
    reporter.write_line("")
    for row in rows:
        reporter.write_line(row)


Check = Callable[..., None]


@pytest.fixture
def check(alone: list[float], table: list[str]) -> Check:
    """Whether a run came out as one left alone, noted in the table."""

    def check(name: str, seed: int, outcome: Outcome, most: int = EVERY) -> None:
        assert outcome.steps == list(range(1, STEPS + 1))
        difference = max(abs(a - b) for a, b in zip(outcome.losses, alone, strict=True))
        loss = said_of_loss(outcome.said)
        table.append(f"| {name} | {seed} | {outcome.lost} | {outcome.seconds:.0f} | {difference:.0e} | {loss} |")
        assert difference < 1e-5
        assert outcome.lost <= most

    return check


def signal_worker(nodes: TwoNodes, number: int, node: int = 1) -> None:
    (worker,) = nodes.machines[node].processes("TrainWorker")
    os.kill(worker, number)


@SEEDS
def test_a_worker_is_killed(seed: int, nodes: TwoNodes, check: Check):
    outcome = with_fault(nodes, f"killed-{seed}", seed, lambda run: signal_worker(nodes, signal.SIGKILL, seed % 2))
    check("worker killed", seed, outcome)
    assert "its process ended without a word" in outcome.said


@SEEDS
def test_a_node_is_killed_and_comes_back(seed: int, nodes: TwoNodes, check: Check):
    def fault(run: Run) -> None:
        nodes.machines[1].kill()
        time.sleep(5)
        nodes.start_ray(1)

    outcome = with_fault(nodes, f"node-{seed}", seed, fault)
    check("node killed, back after 5 s", seed, outcome)
    known = "its node is gone|lost its connection to the worker on node 10.99.0.2|the node 10.99.0.2 does not answer"
    assert re.search(known, outcome.said)


@SEEDS
def test_the_head_is_killed_and_comes_back(seed: int, nodes: TwoNodes, check: Check):
    """Its state is on a disk, and the command runs on the other node."""

    def fault(run: Run) -> None:
        nodes.machines[0].kill()
        time.sleep(5)
        nodes.start_ray(0)

    outcome = with_fault(nodes, f"head-{seed}", seed, fault, node=1)
    check("head killed, back after 5 s", seed, outcome)
    assert "all workers are started again" in outcome.said


@SEEDS
def test_a_worker_is_stopped(seed: int, nodes: TwoNodes, check: Check):
    wait = 60 if seed == 0 else 10
    setting = f"train.wait_for_worker={wait}"
    outcome = with_fault(nodes, f"stopped-{seed}", seed, lambda run: signal_worker(nodes, signal.SIGSTOP), setting)
    check(f"worker stopped, found after {wait} s", seed, outcome)
    assert "on node 10.99.0.2) has not answered for" in outcome.said
    assert wait < outcome.seconds < wait + 120  # the start of the workers included
    assert not nodes.machines[1].processes("TrainWorker")


@SEEDS
def test_a_step_of_a_worker_hangs(seed: int, nodes: TwoNodes, check: Check):
    """Its process answers Ray all the while."""
    file, setting = nodes.folder / "hang" / "now", "train.wait_for_worker=10"
    outcome = with_fault(nodes, f"hang-{seed}", seed, lambda run: file.touch(), setting)
    check("step hangs, found after 10 s", seed, outcome)
    assert re.search(r"worker \d \(process \d+ on node 10.99.0.\d\) has made no step for \d\d s", outcome.said)
    assert "in train); all workers are started again (loss 1 of 3" in outcome.said


@SEEDS
def test_the_link_is_cut_for_a_minute(seed: int, nodes: TwoNodes, check: Check):
    def fault(run: Run) -> None:
        nodes.cut()
        time.sleep(60)
        nodes.mend()
        # Ray ends on a node that hears that it was given up; whatever keeps it up there starts it again.
        for _ in range(30):
            time.sleep(1)
            nodes.ensure_started()

    check("link cut for a minute", seed, with_fault(nodes, f"cut-{seed}", seed, fault))


@SEEDS
def test_the_link_is_cut_for_good(seed: int, nodes: TwoNodes, check: Check):
    """The node comes back, as from another place, when it has been given up."""

    def fault(run: Run) -> None:
        nodes.cut()
        run.wait_for_line("all workers are started again")
        nodes.machines[1].kill()
        nodes.mend()
        nodes.start_ray(1)

    outcome = with_fault(nodes, f"cut-for-good-{seed}", seed, fault)
    check("link cut for good, another node", seed, outcome)


@SEEDS
def test_a_node_is_ten_times_as_slow(seed: int, nodes: TwoNodes, check: Check):
    """Its worker runs for a tenth of the time."""
    is_over = threading.Event()

    def slow_down(worker: int) -> None:
        while not is_over.is_set():
            os.kill(worker, signal.SIGSTOP)
            time.sleep(0.09)
            os.kill(worker, signal.SIGCONT)
            time.sleep(0.01)

    def fault(run: Run) -> None:
        (worker,) = nodes.machines[1].processes("TrainWorker")
        thread = threading.Thread(target=slow_down, args=(worker,))
        thread.start()
        run.wait_for_line("they wait for it")
        is_over.set()
        thread.join()

    outcome = with_fault(nodes, f"slow-{seed}", seed, fault)
    check("one node ten times as slow", seed, outcome)
    assert "all workers are started again" not in outcome.said


@SEEDS
def test_the_disk_is_full_while_a_checkpoint_is_written(seed: int, nodes: TwoNodes, check: Check):
    disk = nodes.folder / "disk"

    def fault(run: Run) -> None:
        with suppress(OSError), (disk / "other").open("wb") as file:
            while True:
                file.write(bytes(2**20))
        run.wait_for_line("was not stored")
        time.sleep(5)
        (disk / "other").unlink()

    outcome = with_fault(nodes, f"full-{seed}", seed, fault, f"train.storage={disk}")
    check("disk full, room after 5 s", seed, outcome)
    assert "No space left on device" in outcome.said
    assert not outcome.lost


@SEEDS
def test_the_storage_fails_for_a_while(seed: int, nodes: TwoNodes, check: Check):
    disk = nodes.folder / "disk"

    def fault(run: Run) -> None:
        shell("chattr", "-R", "+i", str(disk))
        run.wait_for_line("was not stored")
        time.sleep(5)
        shell("chattr", "-R", "-i", str(disk))

    outcome = with_fault(nodes, f"failing-{seed}", seed, fault, f"train.storage={disk}")
    check("storage takes nothing for 5 s", seed, outcome)
    assert not outcome.lost


@SEEDS
def test_the_newest_checkpoint_is_damaged_when_a_worker_is_lost(seed: int, nodes: TwoNodes, check: Check):
    """Cut short, or without its manifest, as one that was not written to its end."""

    def fault(run: Run) -> None:
        manifest = sorted((run.path / "checkpoints").glob("checkpoint_0*/checkpoint.json"))[-1]
        newest = manifest.parent
        if seed % 2:
            manifest.unlink()
        else:
            largest = max(newest.iterdir(), key=lambda file: file.stat().st_size)
            largest.write_bytes(largest.read_bytes()[:-100])
        signal_worker(nodes, signal.SIGKILL)

    outcome = with_fault(nodes, f"damaged-{seed}", seed, fault)
    check("worker killed, newest checkpoint damaged", seed, outcome, most=2 * EVERY)
    assert "is left out" in outcome.said


@SEEDS
def test_w_b_is_gone(seed: int, nodes: TwoNodes, check: Check):
    def fault(run: Run) -> None:
        processes = [each for machine in nodes.machines for each in machine.processes("wandb-core")]
        assert processes
        for process in processes:
            os.kill(process, signal.SIGKILL)

    outcome = with_fault(nodes, f"wandb-{seed}", seed, fault, "tracking.wandb=offline")
    check("W&B's process killed", seed, outcome)
    assert not outcome.lost


def test_a_run_directory_that_only_one_node_has_is_told_once(nodes: TwoNodes):
    run = Run(nodes, "apart/run")
    since = time.monotonic()
    run.wait_for_end()
    assert time.monotonic() - since < 100
    said = run.said().splitlines()
    assert not any("all workers are started again" in line for line in said)
    assert "10.99.0.2" in said[-1]
    assert "Traceback" not in run.said()
