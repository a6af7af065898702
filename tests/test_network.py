"""The interface that workers of several nodes reach each other over, with a real process group between two machines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distmeta.train.network import GLOO, NCCL, interface_of, use_interface_of
from tests.commands import environment
from tests.two_nodes import two_nodes

WORKER = """
import sys, datetime, torch
rank, is_chosen = map(int, sys.argv[1:])
address = ["10.99.0.1", "10.99.0.2"][rank]
if is_chosen:
    from distmeta.train.network import use_interface_of
    print(use_interface_of(address, {}))
join = datetime.timedelta(seconds=15)
torch.distributed.init_process_group("gloo", "tcp://10.99.0.1:29500", join, world_size=2, rank=rank)
ones = torch.ones(3)
torch.distributed.all_reduce(ones)
print(ones.sum().item())
"""


def join(folder: Path, is_chosen: bool) -> list[list[str]]:
    """What two workers print, one on each machine."""
    with two_nodes(folder) as nodes:
        workers = [
            subprocess.Popen(
                machine.command("timeout", "30", sys.executable, "-c", WORKER, str(rank), str(int(is_chosen))),
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank, machine in enumerate(nodes.machines)
        ]
        said = [worker.communicate(timeout=60)[0].splitlines() for worker in workers]
        return [[line for line in lines if not line.startswith("[W")] for lines in said]


def test_workers_of_two_nodes_join_where_host_names_are_loopback_addresses(tmp_path: Path):
    assert join(tmp_path, is_chosen=True) == [["e0 on 10.99.0.1", "6.0"], ["e0 on 10.99.0.2", "6.0"]]


@pytest.mark.slow  # it shows that the test before can fail
def test_left_to_itself_gloo_offers_a_loopback_address(tmp_path: Path):
    assert not any("6.0" in lines for lines in join(tmp_path, is_chosen=False))


def test_what_the_user_sets_counts(monkeypatch: pytest.MonkeyPatch):
    for name in (GLOO, NCCL):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    assert use_interface_of("127.0.0.1", {}) == "lo on 127.0.0.1"
    assert (os.environ[GLOO], os.environ[NCCL]) == ("lo", "=lo")
    monkeypatch.delenv(NCCL)
    monkeypatch.setenv(GLOO, "eth7")
    said = use_interface_of("127.0.0.1", {GLOO: "of the driver", NCCL: "ib0"})
    assert said == "GLOO_SOCKET_IFNAME=eth7, NCCL_SOCKET_IFNAME=ib0 on 127.0.0.1, as it is set"


def test_an_address_that_no_interface_holds_is_told(monkeypatch: pytest.MonkeyPatch):
    for name in (GLOO, NCCL):
        monkeypatch.delenv(name, raising=False)
    assert not interface_of("203.0.113.7")
    assert "203.0.113.7, where no interface holds that address: set" in use_interface_of("203.0.113.7", {})
    assert GLOO not in os.environ
