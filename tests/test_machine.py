"""What a process may use of its machine, on made-up trees of control groups and in real ones."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from distmeta.cluster.machine import available_cpus, available_memory, limit_threads

V2 = "35 24 0:30 {within} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 32 0:31 {within} /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}"
HYBRID = "40 32 0:40 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"


@pytest.fixture(autouse=True)
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


def machine(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A tree with /proc and /sys as a process in those groups sees them."""
    files = {"proc/self/cgroup": groups, "proc/self/mountinfo": f"1 0 8:1 / / rw - ext4 /dev/x rw\n{mounts}\n"} | {
        f"sys/fs/cgroup/{name}": content for name, content in files.items()
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 16),
        ({"cpu.max": "300000 100000"}, 3),
        ({"cpu.max": "max 100000"}, 16),
        ({"cpu.max": "250000 100000"}, 2),  # Ray knows no half CPU
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, 16),  # more than there are
        ({"pod/box/cpu.max": "400000 100000"}, 4),
        ({"pod/box/cpu.max": "max 100000", "pod/cpu.max": "200000 100000"}, 2),  # the group around it
        ({"pod/box/cpu.max": "500000 100000", "pod/cpu.max": "600000 100000"}, 5),
        ({"other/cpu.max": "100000 100000"}, 16),
    ],
)
def test_cpus_are_the_least_of_affinity_and_quotas(files: dict[str, str], cpus: int, tmp_path: Path):
    assert available_cpus(machine(tmp_path, "0::/pod/box\n", V2.format(within="/"), files)) == cpus


@pytest.mark.parametrize(
    ("group", "within", "folder"),
    [
        ("/docker/ab", "/docker/ab", ""),  # a container that sees the machine's names, and has its own part mounted
        ("/docker/ab", "/", "docker/ab/"),
        ("/", "/", ""),  # with a name space of its own
        ("/../..", "/", ""),  # looked at from a name space beside it
    ],
)
@pytest.mark.parametrize("quota", ["200000", "-1"])
def test_the_first_version_of_control_groups_counts_too(
    group: str, within: str, folder: str, quota: str, tmp_path: Path
):
    groups = f"4:memory:{group}\n3:cpu,cpuacct:{group}\n2:cpuset:/\n0::/\n"
    mounts = "\n".join([V1.format(within=within, name="cpu,cpuacct"), V1.format(within=within, name="memory"), HYBRID])
    files = {
        f"cpu,cpuacct/{folder}cpu.cfs_quota_us": quota,
        f"cpu,cpuacct/{folder}cpu.cfs_period_us": "100000",
        f"memory/{folder}memory.limit_in_bytes": "1048576" if quota != "-1" else "9223372036854771712",
        "unified/cgroup.procs": "1",
    }
    root = machine(tmp_path, groups, mounts, files)
    assert available_cpus(root) == (2 if quota != "-1" else 16)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_memory(root) == (1048576 if quota != "-1" else there)


def test_memory_is_bounded_by_the_groups_around_too(tmp_path: Path):
    files = {"pod/box/memory.max": "max", "pod/memory.max": "2097152"}
    assert available_memory(machine(tmp_path, "0::/pod/box\n", V2.format(within="/"), files)) == 2097152


def test_a_machine_without_control_groups_has_its_cpus(tmp_path: Path):
    assert available_cpus(tmp_path) == 16
    assert available_memory(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_libraries_start_no_more_threads_than_there_are_cpus_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("distmeta.cluster.machine.available_cpus", lambda: 16)
    limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setattr("distmeta.cluster.machine.available_cpus", lambda: 3)
    limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # the user's word
    limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group of this machine with time for one CPU and a half."""
    is_second = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    folder = Path("/sys/fs/cgroup" if is_second else "/sys/fs/cgroup/cpu") / f"distmeta-test-{os.getpid()}"
    quota, content = ("cpu.max", "150000 100000") if is_second else ("cpu.cfs_quota_us", "150000")
    try:
        folder.mkdir()
        (folder / quota).write_text(content)
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"control groups cannot be made here: {error}")
    yield folder
    folder.rmdir()


def test_a_real_quota_is_kept(real_group: Path):
    code = "import os; os.sched_getaffinity = lambda _: set(range(16)); "
    code += "from distmeta.cluster.machine import available_cpus; print(available_cpus())"
    command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(real_group), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
