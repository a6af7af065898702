"""What the workers' machines are used for: the same row on each, from what all of them saw."""

import time

import psutil
import pytest
import torch

from distmeta.tracking import machine_use
from distmeta.tracking.machine_use import EVERY, MachineUse, memory
from tests.workers import worlds_of

CPU = torch.device("cpu")


def test_the_main_worker_says_when_to_look():
    now = [0.0]
    main, other = (MachineUse(CPU, 2, is_main=is_main, clock=lambda: now[0]) for is_main in (True, False))
    assert not main.is_due
    now[0] = EVERY
    assert main.is_due
    assert not other.is_due


def test_memory_and_processors_are_those_of_the_process():
    use = MachineUse(CPU, 1, is_main=True)
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    row, joules = use.look()
    assert row["machine/memory_gib/mean"] == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.1)
    assert 0.05 < row["machine/cpus/mean"] < 64
    assert (joules, {name.split("/")[1] for name in row}) == (0.0, {"memory_gib", "cpus"})
    assert memory(CPU) > 10**7
    assert use.look()[0]["machine/cpus/mean"] < 64


def test_it_is_the_lowest_mean_and_highest_of_those_that_tell(monkeypatch):
    use = MachineUse(CPU, 3, is_main=True, clock=iter([0.0, 10.0]).__next__)
    seen = [[1.0, 2.0, 0.5, 100.0], [2.0, 2.0, torch.nan, torch.nan], [6.0, 5.0, 1.0, 300.0]]
    monkeypatch.setattr(use, "_of_workers", lambda found: [list(each) for each in zip(*seen, strict=True)])
    row, joules = use.look()
    assert [row[f"machine/memory_gib/{which}"] for which in ("lowest", "mean", "highest")] == [1.0, 3.0, 6.0]
    assert [row[f"machine/device/{which}"] for which in ("lowest", "mean", "highest")] == [0.5, 0.75, 1.0]
    assert joules == 4000.0


def look() -> dict[str, float]:
    """A worker's, the second of which holds much more than the first."""
    rank = torch.distributed.get_rank()
    use, held = MachineUse(CPU, 2, is_main=rank == 0), torch.ones(rank * 50_000_000)
    row, _ = use.look()
    assert len(held) == rank * 50_000_000
    return row


def test_workers_see_each_other(tmp_path):
    with worlds_of(tmp_path, 2) as worlds:
        row = worlds[2].run(look)
    assert row["machine/memory_gib/highest"] - row["machine/memory_gib/lowest"] > 0.1


def test_a_gpu_without_nvml_tells_nothing(monkeypatch):
    def missing(_: torch.device) -> int:
        raise ModuleNotFoundError("pynvml is not installed")

    monkeypatch.setattr(torch.cuda, "utilization", missing)
    assert machine_use._of_device(torch.device("cuda")) == {}
