"""Two machines on this one: network namespaces with an address each and a link between them, and a Ray node in each."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.commands import environment

ADDRESSES = ("10.99.0.1", "10.99.0.2")
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def shell(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@functools.cache
def why_not() -> str:
    """Why there can be no namespaces here; empty: there can."""
    try:
        shell("ip", "netns", "add", "distmeta-probe")
        shell("ip", "netns", "del", "distmeta-probe")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces cannot be made: {getattr(error, 'stderr', '') or error}"
    return ""


class Machine:
    """One of the two: commands run in its namespace, where its own name is a loopback address, as Debian has it."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self._hosts = Path("/etc/netns") / name / "hosts"
        shell("ip", "netns", "add", name)
        self._hosts.parent.mkdir(parents=True)
        self._hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {os.uname().nodename}\n")

    def connect(self) -> None:
        """Brings its interfaces up."""
        shell("ip", "-n", self.name, "addr", "add", f"{self.address}/24", "dev", "e0")
        for interface in ("lo", "e0"):
            shell("ip", "-n", self.name, "link", "set", interface, "up")

    def command(self, *command: str) -> list[str]:
        """The command that runs another one there."""
        return ["ip", "netns", "exec", self.name, *command]

    def processes(self, word: str = "") -> list[int]:
        """Those that run there and whose command has the word."""
        found = []
        for process in map(int, shell("ip", "netns", "pids", self.name).split()):
            with suppress(OSError):
                if word in Path(f"/proc/{process}/cmdline").read_text().replace("\0", " "):
                    found.append(process)
        return found

    def kill(self) -> None:
        """What the loss of its power would do."""
        while processes := self.processes():
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)

    def remove(self) -> None:
        self.kill()
        shell("ip", "netns", "del", self.name)
        self._hosts.unlink()
        self._hosts.parent.rmdir()


class TwoNodes:
    """Two machines that are connected."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables: dict[str, str] = {}
        """What is in the environment of every Ray node."""
        self.apart = folder / "apart"
        """A folder that is another one on the second node."""
        self.apart.mkdir(exist_ok=True)
        self._ray: dict[int, subprocess.Popen[bytes]] = {}
        self.machines = [Machine(f"dm{os.getpid()}{letter}", ADDRESSES["ab".index(letter)]) for letter in "ab"]
        first, second = (machine.name for machine in self.machines)
        shell("ip", "link", "add", "e0", "netns", first, "type", "veth", "peer", "name", "e0", "netns", second)
        for machine in self.machines:
            machine.connect()

    def start_ray(self, number: int, *options: str, cpus: int = 1, **variables: str) -> None:
        """Starts a Ray node; the head is number 0. Neither sees the processes of the other, since Ray looks among
        them for the node that a command runs on, and for a head that is there already."""
        machine, head = self.machines[number], self.machines[0].address
        where = ["--head", "--port", "6379", "--include-dashboard", "false", "--temp-dir", f"{self.folder}/ray"]
        command = [*RAY, "start", "--block", "--num-cpus", str(cpus), "--object-store-memory", "100000000"]
        command += ["--node-ip-address", machine.address, *(where if number == 0 else ["--address", f"{head}:6379"])]
        if number == 1:
            command = ["sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(self.apart), *command]
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command]
        with (self.folder / f"ray-{number}.log").open("a") as log:
            self._ray[number] = subprocess.Popen(
                machine.command(*command, *options),
                env=environment() | self.variables | variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def command(self, number: int, *command: str) -> list[str]:
        """The command that runs another one in the folder, on a node that Ray has been started on."""
        (inside,) = psutil.Process(self._ray[number].pid).children()
        target = ["nsenter", "--target", str(inside.pid), "--mount", "--net", "--pid"]
        return [*target, "env", "--chdir", str(self.folder), *command]

    def ensure_started(self) -> None:
        """Starts Ray where it has ended."""
        for number in range(len(self.machines)):
            if number not in self._ray or self._ray[number].poll() is not None:
                self.start_ray(number)

    def ensure_ray(self) -> None:
        """Starts Ray where it has ended, and waits until the cluster has both nodes."""
        status = self.machines[0].command(*RAY, "status", "--address", f"{ADDRESSES[0]}:6379")
        for _ in range(30):
            self.ensure_started()
            done = subprocess.run(status, env=environment(), capture_output=True, text=True, check=False)
            if "/2.0 CPU" in done.stdout:
                return
            time.sleep(1)
        raise AssertionError(done.stdout + done.stderr + (self.folder / "ray-1.log").read_text()[-2000:])

    def cut(self) -> None:
        """Cuts the link: what is sent, to an Ethernet address that nobody has, is lost without a word to the sender."""
        for machine, other in zip(self.machines, reversed(ADDRESSES), strict=True):
            nobody = ("lladdr", "02:00:00:00:00:99", "dev", "e0", "nud", "permanent")
            shell("ip", "-n", machine.name, "neigh", "replace", other, *nobody)

    def mend(self) -> None:
        """Makes it good."""
        for machine, other in zip(self.machines, reversed(ADDRESSES), strict=True):
            shell("ip", "-n", machine.name, "neigh", "del", other, "dev", "e0")

    def remove(self) -> None:
        for machine in self.machines:
            machine.remove()


@contextmanager
def two_nodes(folder: Path) -> Iterator[TwoNodes]:
    """Two machines without Ray; the test is skipped where there can be none."""
    if reason := why_not():
        pytest.skip(reason)
    nodes = TwoNodes(folder)
    try:
        yield nodes
    finally:
        nodes.remove()
