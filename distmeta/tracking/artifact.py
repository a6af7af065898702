"""The exported model as an artifact of its run in Weights & Biases."""

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distmeta.rundir import RunDirectory
from distmeta.tracking.config import TrackingConfig
from distmeta.tracking.wandb_environment import names
from distmeta.tracking.wandb_run import FINISH_TIMEOUT, first_line, has_login, mode_of_user, quiet_settings

logger = logging.getLogger(__name__)

UPLOAD_TIMEOUT = 600.0
"""Seconds that the upload of a model may take."""


def log_model(run_dir: Path, folder: Path, config: TrackingConfig) -> bool:
    """Uploads a folder as an artifact of type `model` of the run that `run_dir` has in W&B, with the digest of the
    corpus and all versions as its metadata; returns whether it did.

    Only where `tracking.log_model` is set, the run is an online one and there is a login. A failure is said once and
    raises nothing, and an upload that takes longer than UPLOAD_TIMEOUT is one. Nothing of it stays on this machine: W&B
    would keep a copy of every version.
    """
    os.environ |= {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}  # read at the first use of W&B
    state_file = run_dir / "wandb.json"
    if not config.log_model or mode_of_user(config) != "online" or not has_login() or not state_file.exists():
        return False
    import wandb

    run_id = json.loads(state_file.read_text())["run_id"]
    try:
        with tempfile.TemporaryDirectory(prefix="distmeta-artifact-") as scratch, _kept_in(Path(scratch)):
            run = wandb.init(
                mode="online",
                id=run_id,
                resume="allow",
                **names(config, run_dir),  # W&B does not know a run that fell back to offline
                dir=scratch,
                settings=quiet_settings(FINISH_TIMEOUT),
            )
            try:
                # The corpus itself would be the input of a lineage, but the client waits without an end to note that.
                artifact = wandb.Artifact(f"model-{run_id}", type="model", metadata=_made_of(run_dir))
                artifact.add_dir(str(folder), skip_cache=True)
                run.log_artifact(artifact).wait(timeout=int(UPLOAD_TIMEOUT))
            finally:
                run.finish(exit_code=0)
    except Exception as error:
        logger.warning("W&B: the model could not be uploaded (%s); it is in %s", first_line(error), folder)
        return False
    return True


def _made_of(run_dir: Path) -> dict[str, str]:
    file = RunDirectory(run_dir).environment
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


@contextmanager
def _kept_in(folder: Path) -> Iterator[None]:
    """Where W&B puts its copies of files meanwhile."""
    variables = {name: str(folder) for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR")}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
