"""What a run makes only its user's own group may write, and no key is in it, whatever the environment and the umask."""

import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.commands import DISTMETA, distmeta_here
from tests.runs import write_config

SECRETS = {
    "WANDB_API_KEY": "5ec7e7" * 6 + "5ec7",
    "WANDB_MODE": "offline",
    "AWS_ACCESS_KEY_ID": "NOTASECRETID1",
    "AWS_SECRET_ACCESS_KEY": "NOTASECRET1",
    "AWS_SESSION_TOKEN": "NOTASECRET2",
    "GOOGLE_API_KEY": "NOTASECRET3",
    "HF_TOKEN": "hf_NOTASECRET4",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0ddba11" * 9,
}
MARKS = [value.encode() for name, value in SECRETS.items() if "MODE" not in name]


def with_secrets(folder: Path, ray: Path, *arguments: str) -> str:
    """Runs a command of somebody whose umask takes nothing away, with Ray's files in `ray`; returns what it said."""
    environment = {**os.environ, **SECRETS, "HOME": str(folder), "RAY_TMPDIR": str(ray)}
    command = ["bash", "-c", 'umask 000; exec "$@"', "bash", *DISTMETA, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def check(run: Path, said: str) -> list[Path]:
    """Of all that is in the directory, and was said; returns the files."""
    made = [path for path in [run, *run.rglob("*")] if not path.is_symlink()]
    assert [path for path in made if path.stat().st_mode & stat.S_IWOTH] == []
    assert not any(mark.decode() in said for mark in MARKS)
    return without_secrets(run)


def without_secrets(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [(path, mark) for path in files for mark in MARKS if mark in path.read_bytes()] == []
    return files


def test_a_corpus_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_config(tmp_path)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    before = os.umask(0)
    try:
        done = distmeta_here("prepare", "--config", "run.yaml", "--run-dir", "run", cwd=tmp_path)
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert any("corpus" in path.parts for path in check(tmp_path / "run", done.stdout + done.stderr))


@pytest.mark.slow
def test_a_whole_run_is_safe(tmp_path: Path):
    """Its checkpoints, its network, its pages, what W&B records, and what Ray has in its logs."""
    write_config(tmp_path, tracking={"wandb": "auto"}, train={"outer_steps": 6, "checkpoint_every": 3})
    with tempfile.TemporaryDirectory(prefix="safe-", dir="/tmp") as ray:  # a socket's path is short
        said = with_secrets(tmp_path, Path(ray), "pretrain", "--config", "run.yaml", "--run-dir", "run")
        said += with_secrets(tmp_path, Path(ray), "report", "run")
        files = check(tmp_path / "run", said) + without_secrets(Path(ray))
    for name in ("config.yaml", "metrics.jsonl", "model.safetensors", "report.html"):
        assert any(path.name == name for path in files), name
    for part in ("checkpoints", "wandb", "logs"):
        assert any(part in path.parts for path in files), part
