"""The scripts of clusters/ that start several nodes on one machine, and over a Slurm job, with the real things."""

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import read_rows
from tests.runs import write_config
from tests.test_job import free_ports

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
ON_EACH = """
import pathlib, socket, sys
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@ray.remote(num_cpus=0)
def leave_marks():
    from pyarrow.fs import FileSelector, FileSystem  # here, where it makes S3 known

    name = socket.gethostname()
    files = [pathlib.Path(folder, f"mark-{name}") for folder in ("/tmp", "/dev/shm", sys.prefix)]
    seen = [str(path) for file in files for path in file.parent.glob("mark-*")]
    for file in files:
        file.touch()
    bucket, path = FileSystem.from_uri("s3://two-nodes")
    bucket.open_output_stream(f"{path}/{name}").close()
    stored = [info.base_name for info in bucket.get_file_info(FileSelector(path))]
    return f"{name} {ray.util.get_node_ip_address()} files {seen} bucket {sorted(stored)}"

ray.init()
for node in sorted(ray.nodes(), key=lambda node: node["NodeManagerAddress"]):
    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    print("LEFT", ray.get(leave_marks.options(scheduling_strategy=here).remote()), flush=True)
"""


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{kept['PATH']}", "VIRTUAL_ENV": sys.prefix}


def left_of(network: str) -> list[str]:
    """Namespaces, links and processes of a cluster; others may be there, too."""
    lists = [["ip", "netns", "list"], ["ip", "-brief", "link"], ["ps", "-eo", "args"]]
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in lists]
    lines = [line for text in said for line in text.splitlines()]
    number = network.rpartition(".")[2]
    return [line for line in lines if re.search(rf"two-nodes-{number}\b|10\.231\.{number}\.", line)]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root, and iproute2")
def test_two_clusters_of_nodes_with_files_of_their_own(tmp_path: Path):
    """At the same time, one of them ended by Ctrl-C: neither is in the other's way, and nothing is left of them."""
    (tmp_path / "on_each.py").write_text(ON_EACH)
    script = [str(ROOT / "clusters" / "two-nodes.sh"), "--separate-files"]
    attended = ["env", "--default-signal=INT", *script]  # a shell's job in the background is told to pass over Ctrl-C
    with (tmp_path / "stopped.log").open("w") as log:
        stopped = subprocess.Popen(attended, env=environment(), stdout=log, stderr=log)
    try:
        networks = [check_marks(script, tmp_path)]
        while "In a second terminal" not in (tmp_path / "stopped.log").read_text():
            assert stopped.poll() is None, (tmp_path / "stopped.log").read_text()
            time.sleep(0.5)
    finally:
        stopped.send_signal(signal.SIGINT)
        status = stopped.wait(60)
    assert status == 130
    networks += re.findall(r"(10\.231\.\d+)\.1 to", (tmp_path / "stopped.log").read_text())
    assert len(set(networks)) == 2
    assert [line for network in networks for line in left_of(network)] == []
    assert not list(Path(sys.prefix).glob("mark-*"))


def check_marks(script: list[str], folder: Path) -> str:
    """By a job that leaves files on each node, and in the bucket; returns the cluster's network."""
    submit = ["ray", "job", "submit", "--working-dir", str(folder), "--", "python", "on_each.py"]
    done = subprocess.run([*script, "--", *submit], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first, second = (line.split("LEFT ")[1] for line in done.stdout.splitlines() if "LEFT " in line)
    network = first.split()[1].rpartition(".")[0]
    assert first == f"node-1 {network}.1 files [] bucket ['node-1']"
    assert second == f"node-2 {network}.2 files [] bucket ['node-1', 'node-2']"
    return network


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Slurm of two nodes on this machine; the environment in which its commands find it."""
    for program in ("slurmctld", "slurmd", "munged"):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"):
            pytest.skip(f"{program} is not here: install slurm-wlm and munge")
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    folder = tmp_path / "slurm"
    for part in ("state", "spool-n1", "spool-n2"):
        (folder / part).mkdir(parents=True)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    controller, first, second = free_ports(3)
    (folder / "slurm.conf").write_text(f"""
        ClusterName=test
        SlurmctldHost={host}(127.0.0.1)
        SlurmUser={user}
        SlurmdUser={user}
        AuthType=auth/munge
        AuthInfo=socket={folder}/munge
        SlurmctldPort={controller}
        StateSaveLocation={folder}/state
        SlurmdSpoolDir={folder}/spool-%n
        SlurmctldPidFile={folder}/controller.pid
        SlurmdPidFile={folder}/%n.pid
        ProctrackType=proctrack/linuxproc
        TaskPlugin=task/none
        SelectType=select/cons_tres
        SelectTypeParameters=CR_Core
        NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2
        NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2
        PartitionName=main Nodes=ALL Default=YES State=UP
    """)
    munge = ["--foreground", "--force", "--key-file", "key", "--socket", "munge"]
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
    programs = [["munged", *(str(folder / w) if w in ("key", "munge") else w for w in munge), *files]]
    programs += [["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    told = environment() | {"SLURM_CONF": str(folder / "slurm.conf")}
    told["PATH"] += ":/usr/sbin"
    running = []
    with (folder / "log").open("w") as log:
        for program in programs:
            running.append(subprocess.Popen(program, env=told, stdout=log, stderr=log))
            time.sleep(1)
    try:
        yield told
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_over_the_nodes_of_a_slurm_job(slurm: dict[str, str], tmp_path: Path):
    """Before its time is over it leaves a checkpoint and goes back into the queue, from which it ends the run."""
    write_config(
        tmp_path, train={"outer_steps": 40, "num_workers": 2, "checkpoint_every": 40}, engine={"zero_stage": 2}
    )
    options = ["--nodes=2", "--cpus-per-task=1", "--gpus-per-node=0", "--time=20", f"--output={tmp_path}/log"]
    job = ["clusters/slurm.sh", "jobs/pretrain.py", "--config", tmp_path / "run.yaml", "--run-dir", tmp_path / "run"]
    command = ["sbatch", "--parsable", *options, *map(str, job)]
    submitted = subprocess.run(command, cwd=ROOT, env=slurm, capture_output=True, text=True, check=False)
    assert submitted.returncode == 0, submitted.stderr + (tmp_path / "slurm" / "log").read_text()
    number = submitted.stdout.strip()

    def state() -> str:
        shown = subprocess.run(
            ["scontrol", "show", "job", number], env=slurm, capture_output=True, text=True, check=True
        )
        return shown.stdout.split("JobState=")[1].split()[0]

    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes()):
        assert state() in ("PENDING", "RUNNING"), (tmp_path / "log").read_text()
        time.sleep(1)
    subprocess.run(["scancel", "--batch", "--signal", "USR1", number], env=slurm, check=True)
    while state() not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"):
        time.sleep(1)
    log = (tmp_path / "log").read_text()
    assert state() == "COMPLETED", log
    assert "slurm.sh: 2 nodes after" in log
    assert "stopped after outer step" in log
    assert "going on from the checkpoint of outer step" in log
    assert [row["outer_step"] for row in read_rows(tmp_path / "run")] == list(range(1, 41))
    assert not list(Path("/tmp").glob(f"ray-{number}"))
