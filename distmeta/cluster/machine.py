"""What this process may use of its machine: the least of what is there and what control groups (containers) allow."""

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cpus(root: Path = Path("/")) -> int:
    """Whole CPUs for this process, at least 1: those of its affinity, and no more than its groups have time for.

    `root` is where the machine's /proc and /sys are.
    """
    quotas = [quota for folder in _own_groups("cpu", root) if (quota := _cpu_quota(folder)) is not None]
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory for this process and the others of its groups."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = ("memory.max", "memory.limit_in_bytes")  # of version 2 and of version 1
    limits = [_numbers(folder / file)[:1] for folder in _own_groups("memory", root) for file in files]
    return min([total, *(int(limit) for found in limits for limit in found)])


def limit_threads() -> None:
    """Has the libraries that are loaded from here on start no more threads than there are CPUs for: of themselves they
    go by the affinity alone, and threads beyond a quota stand in each other's way."""
    if (cpus := available_cpus()) < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus))


def _cpu_quota(folder: Path) -> float | None:
    """CPUs whose time a group may use; None: as many as there are."""
    if len(numbers := _numbers(folder / "cpu.max")) == 2:  # version 2; "max 100000": no quota
        return numbers[0] / numbers[1]
    quota, period = _numbers(folder / "cpu.cfs_quota_us"), _numbers(folder / "cpu.cfs_period_us")
    return quota[0] / period[0] if quota and period and quota[0] > 0 else None  # version 1; -1: no quota


def _numbers(file: Path) -> list[float]:
    """The numbers in a file, until something else comes; none where there is no such file."""
    numbers: list[float] = []
    try:
        for word in file.read_text().split():
            numbers.append(float(word))
    except (OSError, ValueError):
        pass
    return numbers


def _own_groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the group of this process and of those around it, as far as they can be seen from here."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for mount in mounts:
        # ID, parent, device, which folder of the file system is mounted, where, ... - type, source, options
        places, _, kind = mount.partition(" - ")
        within, at = (field.encode().decode("unicode_escape") for field in places.split()[3:5])
        type_name, _, options = kind.split(maxsplit=2)
        for membership in memberships:
            _, controllers, group = membership.split(":", 2)
            if controllers:
                matches = (
                    type_name == "cgroup"
                    and controller in controllers.split(",")
                    and controller in (options.split(","))
                )
            else:
                matches = type_name == "cgroup2"
            if not matches:
                continue
            top, own = root / at.lstrip("/"), PurePosixPath(group)
            # A container that sees the whole tree by its names has only its own part of it mounted.
            inner = own.relative_to(within) if own.is_relative_to(within) else PurePosixPath()
            parts = () if ".." in inner.parts else inner.parts
            for depth in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:depth])


def machine_name() -> str:
    """Names this start of this machine, and in it what numbers the processes: it tells machines apart, the same one
    after another start, and containers, which count their processes anew."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        name = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        name = socket.gethostname()
    return hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
