"""The command line as a user has it, for tests of whole runs and sweeps."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from distmeta.cli import main
from distmeta.signals import end_with_parent

DISTMETA = [sys.executable, "-m", "distmeta.cli"]
KEY = "0123456789abcdef0123456789abcdef01234567"


def environment() -> dict[str, str]:
    wandb = {"API_KEY": KEY, "BASE_URL": "http://127.0.0.1:9", "NOTES": "said by the command", "MODE": ""}
    return {**os.environ, "RAY_AUTH_MODE": "disabled"} | {f"WANDB_{name}": value for name, value in wandb.items()}


def distmeta(
    *arguments: str | Path, cwd: Path, check: bool = True, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    command = [*DISTMETA, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


def distmeta_here(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same of a command that starts no process, in this one, in which the libraries are loaded already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    command = ["distmeta", *map(str, arguments)]
    with (
        mock.patch.dict(os.environ, environment()),
        mock.patch.object(sys, "argv", command),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    _forget_wandb()
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def _forget_wandb() -> None:
    """W&B remembers a login as long as its process lives, which is this one."""
    if wandb := sys.modules.get("wandb"):
        from wandb.sdk.lib import wbauth

        wandb.teardown()
        wbauth.unauthenticate_session(update_settings=False)


def read_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Running:
    """A run or sweep under way, to be disturbed."""

    def __init__(self, folder: Path, config: str, run: str, *arguments: str, verb: str = "pretrain") -> None:
        self.run = folder / run
        command = [*DISTMETA, verb, "--config", config, "--run-dir", run, *arguments]
        self.log = folder / f"{run.rpartition('/')[2]}.log"
        with self.log.open("a") as log:
            # With a process group of its own, as a shell or a scheduler gives it; it ends with the tests all the same.
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def wait_for_step(self, step: int, within: str = ".") -> list[psutil.Process]:
        """Waits until the outer step of the run in that folder is written down; returns the processes of all."""
        deadline = time.time() + 180
        while time.time() < deadline and self.process.poll() is None:
            metrics = self.run / within / "metrics.jsonl"
            if metrics.exists() and len(metrics.read_bytes().splitlines()) >= step:
                return psutil.Process(self.process.pid).children(recursive=True)
            time.sleep(0.02)
        raise AssertionError(self.log.read_text()[-4000:])

    def wait_for_line(self, beginning: str) -> None:
        """Waits until the command has said a line that begins so."""
        deadline = time.time() + 180
        while time.time() < deadline and self.process.poll() is None:
            if f"\n{beginning}" in self.log.read_text():
                return
            time.sleep(0.02)
        raise AssertionError(self.log.read_text()[-4000:])

    def signal_group(self, number: int) -> None:
        """What a scheduler, `timeout`, Ctrl-C and a terminal that is closed do."""
        os.killpg(self.process.pid, number)

    def wait(self) -> int:
        return self.process.wait(timeout=200)


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
