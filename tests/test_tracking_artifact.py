"""The model as a W&B artifact: by the real client, to as much of a server as it needs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.wandb_server import server

CODE = """
import logging, sys
from pathlib import Path
from distmeta.tracking import artifact, wandb_run
from distmeta.tracking.artifact import log_model
from distmeta.tracking.config import TrackingConfig
logging.basicConfig()
wandb_run.INIT_TIMEOUT = artifact.FINISH_TIMEOUT = 3
artifact.UPLOAD_TIMEOUT = float(sys.argv[4])
run = Path(sys.argv[1])
config = TrackingConfig(wandb=sys.argv[2], log_model=sys.argv[3] == "yes", group="a sweep")
print(log_model(run, run / "model", config))
"""


def log_model(tmp_path: Path, mode: str, wanted: str, url: str, timeout: float = 60) -> tuple[bool, str, float]:
    run, home = tmp_path / "run", tmp_path / "home"
    (run / "model").mkdir(parents=True, exist_ok=True)
    home.mkdir(exist_ok=True)
    (run / "wandb.json").write_text(json.dumps({"run_id": "abc123"}))
    (run / "environment.json").write_text(json.dumps({"corpus": "0123456789abcdef"}))
    for name in ("config.json", "model.safetensors"):
        (run / "model" / name).write_text(f"content of {name}")
    variables = {"WANDB_API_KEY": "9f3c" * 10, "WANDB_BASE_URL": url, "HOME": str(home), "TMPDIR": str(home)}
    command = [sys.executable, "-c", CODE, str(run), mode, wanted, str(timeout)]
    started = time.monotonic()
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip().endswith("True"), done.stderr, time.monotonic() - started


def test_the_model_goes_to_its_run_and_no_copy_of_it_stays_here(tmp_path: Path):
    """Case E4."""
    with server() as running:
        done, output, _ = log_model(tmp_path, "online", "yes", f"http://127.0.0.1:{running.server_port}")
        assert done, output
        for name in ("config.json", "model.safetensors"):
            assert running.uploaded[f"/uploaded/{name}"].decode() == f"content of {name}"
        assert any("mutation CommitArtifact" in request for request in running.sent)
        (made,) = [
            json.loads(each)["variables"]["input"] for each in running.sent if "mutation CreateArtifact " in each
        ]
        assert json.loads(made["metadata"])["corpus"] == "0123456789abcdef", "what it was made of"
        (run, *_) = [json.loads(request)["variables"] for request in running.sent if "upsertBucket" in request]
        assert (run["name"], run["displayName"], run["groupName"]) == ("abc123", "run", "a sweep")
    assert output == ""
    copies = [file for file in (tmp_path / "home").rglob("*") if file.is_file() and b"content of" in file.read_bytes()]
    assert copies == []


def test_offline_or_unwanted_nothing_is_sent(tmp_path: Path):
    with server() as running:
        url = f"http://127.0.0.1:{running.server_port}"
        for mode, wanted in (("offline", "yes"), ("auto", "no"), ("disabled", "yes")):
            done, output, _ = log_model(tmp_path, mode, wanted, url)
            assert not done, output
        assert running.sent == []


@pytest.mark.parametrize(("uploads", "timeout"), [("refused", 60), ("unanswered", 2)])
def test_an_upload_that_fails_is_said_once_and_costs_seconds(tmp_path: Path, uploads, timeout):
    """The server knows the run and takes all that is logged to it, but not the files."""
    with server() as running:
        running.uploads = uploads
        url = f"http://127.0.0.1:{running.server_port}"
        done, output, seconds = log_model(tmp_path, "online", "yes", url, timeout)
    assert not done
    (line,) = output.splitlines()
    assert "the model could not be uploaded" in line
    assert str(tmp_path / "run" / "model") in line
    assert seconds < 30


def test_a_server_that_is_not_there_is_said_once_and_costs_seconds(tmp_path: Path):
    done, output, seconds = log_model(tmp_path, "online", "yes", "http://127.0.0.1:9")
    assert not done
    (line,) = output.splitlines()
    assert "the model could not be uploaded" in line
    assert seconds < 30
