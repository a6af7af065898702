"""What a run makes only its user's own group may write, and no key is in it, whatever the environment and the umask."""

import os
import stat
import subprocess
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


def with_secrets(folder: Path, *arguments: str) -> str:
    """Runs a command of somebody whose umask takes nothing away; returns what it said."""
    home, temporary = folder / "home", Path("/tmp") / f"safe-{os.getpid()}"
    home.mkdir(exist_ok=True)
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, **SECRETS, "HOME": str(home), "RAY_TMPDIR": str(temporary)}
    command = ["bash", "-c", 'umask 000; exec "$@"', "bash", *DISTMETA, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    os.rename(temporary, folder / "ray")
    return done.stdout + done.stderr


def check(folder: Path, said: str) -> list[Path]:
    """Of all that is in the folder, and was said; returns the files."""
    made = [path for path in folder.rglob("*") if not path.is_symlink()]
    assert [path for path in made if path.stat().st_mode & stat.S_IWOTH] == []
    files = [path for path in made if path.is_file()]
    held = [(path, mark) for path in files for mark in MARKS if mark in path.read_bytes()]
    assert held == []
    assert not any(mark.decode() in said for mark in MARKS)
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
    write_config(
        tmp_path, tracking={"wandb": "auto"}, train={"outer_steps": 6, "checkpoint_every": 3, "num_workers": 2}
    )
    said = with_secrets(tmp_path, "pretrain", "--config", "run.yaml", "--run-dir", "run")
    said += with_secrets(tmp_path, "report", "run")
    files = check(tmp_path / "run", said) + check(tmp_path / "ray", "")
    for name in ("config.yaml", "metrics.jsonl", "model.safetensors", "report.html"):
        assert any(path.name == name for path in files), name
    for part in ("checkpoints", "wandb", "logs"):
        assert any(part in path.parts for path in files), part
