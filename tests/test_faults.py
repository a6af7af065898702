"""What happens to machines while a run on two nodes is under way: each fault three times, at moments drawn from a seed.

The result has to be that of a run left alone, with no more lost than what was done since a checkpoint. The table of all
of them is printed at the end: `pytest -m slow tests/test_faults.py`.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.faults import EVERY, STEPS, Outcome, Run, said_of_loss, with_fault, write_config
from tests.two_nodes import TwoNodes, two_nodes

pytestmark = pytest.mark.slow
SEEDS = pytest.mark.parametrize("seed", range(3))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    folder = tmp_path_factory.mktemp("faults")
    write_config(folder)
    with two_nodes(folder) as nodes:
        nodes.start_ray(0)
        yield nodes


@pytest.fixture
def nodes(cluster: TwoNodes) -> TwoNodes:
    """Both nodes, up."""
    cluster.ensure_ray()
    return cluster


@pytest.fixture(scope="module")
def alone(cluster: TwoNodes) -> list[float]:
    """The losses of a run that nothing happens to."""
    cluster.ensure_ray()
    outcome = Run(cluster, "alone").finish(time.monotonic())
    assert outcome.returned == 0, outcome.said[-4000:]
    return outcome.losses


@pytest.fixture(scope="module")
def table(pytestconfig: pytest.Config) -> Iterator[list[str]]:
    rows = ["| fault | seed | steps lost | seconds to go on | largest difference | said |", "| - | - | - | - | - | - |"]
    yield rows
    reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")
    reporter.write_line("")
    for row in rows:
        reporter.write_line(row)


Check = Callable[[str, int, Outcome], None]


@pytest.fixture
def check(alone: list[float], table: list[str]) -> Check:
    """Whether a run came out as one left alone, noted in the table."""

    def check(name: str, seed: int, outcome: Outcome) -> None:
        assert outcome.returned == 0, outcome.said[-6000:]
        assert outcome.steps == list(range(1, STEPS + 1))
        difference = max(abs(a - b) for a, b in zip(outcome.losses, alone, strict=True))
        loss = said_of_loss(outcome.said)
        table.append(f"| {name} | {seed} | {outcome.lost} | {outcome.seconds:.0f} | {difference:.0e} | {loss} |")
        assert difference < 1e-5
        assert outcome.lost <= EVERY

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
    assert "its node is gone" in outcome.said


@SEEDS
def test_a_worker_is_stopped(seed: int, nodes: TwoNodes, check: Check):
    wait = 60 if seed == 0 else 10
    options = ["--set", f"train.wait_for_worker={wait}"]
    outcome = with_fault(nodes, f"stopped-{seed}", seed, lambda run: signal_worker(nodes, signal.SIGSTOP), *options)
    check(f"worker stopped, found after {wait} s", seed, outcome)
    assert "on node 10.99.0.2) has not answered for" in outcome.said
    assert wait < outcome.seconds < wait + 60
    assert not nodes.machines[1].processes("TrainWorker")


@SEEDS
def test_the_link_is_cut_for_a_minute(seed: int, nodes: TwoNodes, check: Check):
    def fault(run: Run) -> None:
        nodes.cut()
        time.sleep(60)
        nodes.mend()
        time.sleep(1)
        nodes.ensure_ray()

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
