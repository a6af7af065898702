"""The job that is submitted to a cluster: a real one on this machine, with its job server and token authentication."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.commands import distmeta, read_rows
from tests.corpora import tiny_config, write_labelled_csv

ROOT = Path(__file__).parent.parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def second_terminal() -> list[str]:
    """What the README has one type in another terminal than that of the cluster."""
    text = (ROOT / "README.md").read_text()
    assert "clusters/local.sh " in text
    return next(block for block in text.split("```") if "RAY_API_SERVER_ADDRESS" in block).strip().splitlines()


def as_new_user(home: Path) -> dict[str, str]:
    """The environment of somebody who has just opened a terminal: the system's Python, no token, nothing set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON", "VIRTUAL_"))}
    own = str(Path(sys.executable).parent)
    path = os.pathsep.join(folder for folder in kept["PATH"].split(os.pathsep) if folder != own)
    return {**kept, "HOME": str(home), "PATH": path}


class Terminal:
    """A terminal in which the README's lines for a job are typed, at a cluster of `clusters/local.sh`."""

    def __init__(self, home: Path, port: int) -> None:
        self.environment = as_new_user(home)
        source, export, *self._submit = second_terminal()
        assert source == "source .venv/bin/activate"
        assert export.startswith("export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 ")
        self._begin = f"source {sys.prefix}/bin/activate; {export.replace('8265', str(port))}"

    def type(self, line: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", f"{self._begin}\n{line}"]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def submit(self, script: str, config: Path, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
        """The README's line for that script, with a smaller configuration."""
        (line,) = (line for line in self._submit if script in line)
        line, _, folder = line.rpartition(" ")
        assert folder.startswith("$PWD/runs/")
        before, _, _ = line.partition("--config ")
        return self.type(" ".join([before, "--config", str(config), "--run-dir", str(run), *more]))


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A cluster in one terminal, and another terminal."""
    home = tmp_path_factory.mktemp("home")
    gcs, dashboard, client, agent = free_ports(4)
    # Only that it may stand beside others.
    options = ["--port", gcs, "--dashboard-port", dashboard, "--ray-client-server-port", client]
    options += ["--dashboard-agent-listen-port", agent, "--node-ip-address", "127.0.0.1", "--num-cpus", 2]
    environment = as_new_user(home)
    if not (ROOT / ".venv").exists():  # as in a second working tree
        environment["VIRTUAL_ENV"] = sys.prefix
    with (home / "head.log").open("w") as log:
        command = ["clusters/local.sh", *map(str, options)]
        head = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    terminal = Terminal(home, dashboard)
    try:
        for _ in range(60):
            if (listed := terminal.type("ray job list", timeout=60)).returncode == 0:
                break
        else:
            raise AssertionError(listed.stderr + (home / "head.log").read_text())
        yield terminal
    finally:
        # Asked to end, Ray takes half a minute over it.
        processes = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)


def submit_tiny_run(terminal: Terminal, folder: Path) -> list[dict[str, Any]]:
    """The rows of a run that was submitted as the README has it, in two terminals, and is whole."""
    write_labelled_csv(folder / "texts.csv")
    tree = tiny_config(folder / "texts.csv", train={"outer_steps": 4, "num_workers": 2})
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(tree))
    done = terminal.submit("jobs/pretrain.py", config, folder / "job")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert (folder / "job" / "model" / "model.safetensors").exists()
    return read_rows(folder / "job")


def test_a_submitted_job_leaves_a_run(terminal: Terminal, tmp_path: Path):
    assert [row["outer_step"] for row in submit_tiny_run(terminal, tmp_path)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_submitted_job_is_the_command(terminal: Terminal, tmp_path: Path):
    """The same configuration through the command line, on a cluster of its own."""
    rows = submit_tiny_run(terminal, tmp_path)
    distmeta("pretrain", "--config", "run.yaml", "--run-dir", "local", cwd=tmp_path)
    assert [row["training/query_loss"] for row in rows] == [
        row["training/query_loss"] for row in read_rows(tmp_path / "local")
    ]


@pytest.mark.parametrize(
    ("run", "more", "line"),
    [
        (
            "/tmp/x",
            ["--set", "train.num_workers=3", "--set", "meta.meta_batch_size=3"],
            "3 workers of 1 CPUs need 3, the cluster has 2",
        ),
        pytest.param("runs/x", [], "is in the job's copy of the code, which Ray deletes", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_fails_the_job_in_a_line(run: str, more: list[str], line: str, terminal: Terminal):
    done = terminal.submit("jobs/pretrain.py", Path("jobs/configs/demo.yaml"), Path(run), *more)
    assert done.returncode != 0
    assert line in done.stdout + done.stderr
    assert "Traceback" not in done.stdout


def test_nothing_about_the_cluster_is_told_to_others(terminal: Terminal):
    home = Path(terminal.environment["HOME"])
    log = (home / "head.log").read_text()
    assert "Usage stats collection is disabled" in log
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_job_that_is_stopped_leaves_a_checkpoint(terminal: Terminal, tmp_path: Path):
    write_labelled_csv(tmp_path / "texts.csv")
    tree = tiny_config(tmp_path / "texts.csv", train={"outer_steps": 4000, "checkpoint_every": 4000})
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tree))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(terminal.submit, "jobs/pretrain.py", config, tmp_path / "job")
        metrics = tmp_path / "job" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_bytes()) and not job.done():
            time.sleep(0.5)
        listed = terminal.type("ray job list").stdout
        running = next(part for part in listed.split("JobDetails(") if "RUNNING" in part)
        terminal.type(f"ray job stop {re.search(r'raysubmit_[A-Za-z0-9]+', running)[0]}")
        assert "--resume goes on" in job.result().stdout
    assert list((tmp_path / "job" / "checkpoints").glob("checkpoint_0*"))


def test_what_is_uploaded_is_small():
    """Case B3: Ray uploads what git does not ignore, so environment, runs and prepared corpora must be ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    size = sum((ROOT / name).stat().st_size for name in listed.stdout.splitlines() if (ROOT / name).is_file())
    assert size < 5_000_000
