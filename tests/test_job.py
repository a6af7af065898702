"""The job that is submitted to a cluster: a real one on this machine, with its job server and token authentication."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.corpora import tiny_config, write_labelled_csv

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node as `ray start` makes it; gives the environment of somebody who may submit to it."""
    home = tmp_path_factory.mktemp("home")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", "PATH": path}
    environment.pop("RAY_ADDRESS", None)
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    gcs, dashboard, client, agent = free_ports(4)
    options = ["--port", gcs, "--dashboard-port", dashboard, "--ray-client-server-port", client]
    options += ["--dashboard-agent-listen-port", agent, "--num-cpus", 2, "--node-ip-address", "127.0.0.1"]
    command = [RAY, "start", "--head", "--block", *map(str, options), "--dashboard-host", "127.0.0.1"]
    with (home / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(60):
            listed = subprocess.run([RAY, "job", "list"], env=environment, capture_output=True, timeout=60, check=False)
            if listed.returncode == 0:
                break
        else:
            raise AssertionError((home / "head.log").read_text())
        yield environment
    finally:
        # Asked to end, Ray takes half a minute over it.
        processes = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)


def test_a_submitted_job_is_the_command(cluster: dict[str, str], tmp_path: Path):
    write_labelled_csv(tmp_path / "texts.csv")
    tree = tiny_config(tmp_path / "texts.csv", train={"outer_steps": 4, "num_workers": 2})
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tree))
    entry = ["python", "jobs/pretrain.py", "--config", str(config), "--run-dir", str(tmp_path / "job")]
    submit = [RAY, "job", "submit", "--working-dir", ".", "--", *entry]
    done = subprocess.run(submit, cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()]
    assert [row["outer_step"] for row in rows] == [1, 2, 3, 4]
    assert (tmp_path / "job" / "model" / "model.safetensors").exists()

    # The same configuration through the command line, on a cluster of its own.
    local = {name: value for name, value in cluster.items() if name != "RAY_API_SERVER_ADDRESS"}
    command = [sys.executable, "-m", "distmeta.cli", "pretrain", "--config", config, "--run-dir", tmp_path / "local"]
    subprocess.run(
        [str(part) for part in command], cwd=tmp_path, env=local, check=True, capture_output=True, timeout=300
    )
    others = [json.loads(line) for line in (tmp_path / "local" / "metrics.jsonl").read_text().splitlines()]
    assert [row["query_loss"] for row in rows] == [row["query_loss"] for row in others]


def test_a_mistake_fails_the_job_in_a_line(cluster: dict[str, str], tmp_path: Path):
    entry = ["python", "jobs/pretrain.py", "--run-dir", str(tmp_path / "job"), "--set", "train.num_workers=3"]
    submit = [RAY, "job", "submit", "--working-dir", ".", "--", *entry]
    done = subprocess.run(submit, cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "3 workers of 1 CPUs need 3, the cluster has 2" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout


def test_what_is_uploaded_is_small():
    """Case B3: Ray uploads what git does not ignore, so environment, runs and prepared corpora must be ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    size = sum((ROOT / name).stat().st_size for name in listed.stdout.splitlines() if (ROOT / name).is_file())
    assert size < 5_000_000
