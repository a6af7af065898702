"""What rank 0 writes down while a run trains."""

import json
from typing import Any

from distmeta.config import Config
from distmeta.rundir import RunDirectory
from distmeta.tracking.metrics import MetricsFile, read_metrics
from distmeta.tracking.wandb_run import WandbRun


class Recorder:
    """Metrics of each step and validation in files at once, and in W&B as soon as a checkpoint covers them.

    A step that is lost with its worker is computed again after the last checkpoint; its rows are then replaced in the
    files, and W&B, which takes nothing back, has not seen them.

    Args:
        outer_step: the step of the checkpoint that the run goes on from; 0 at a beginning.
    """

    def __init__(self, config: Config, run: RunDirectory, outer_step: int) -> None:
        self._metrics, self._validation = MetricsFile(run.metrics), MetricsFile(run.validation)
        # A beginning scores the network of step 0 again: what an attempt before it wrote is replaced as well.
        last_kept = outer_step if outer_step else -1
        self._metrics.truncate_after(last_kept)
        self._validation.truncate_after(last_kept)
        self._pending: list[dict[str, Any]] = []
        if outer_step and run.metrics.exists():
            self._pending = read_metrics(run.metrics)
        settings = config.model_dump(exclude={"sweep"})
        if run.trial.exists():
            # Beside the tree also as plain numbers, under the names by which W&B's panels compare the runs of a group.
            settings |= json.loads(run.trial.read_text(encoding="utf-8"))["config"]
        self._wandb = WandbRun(run.path, config.tracking, settings)
        self.checkpointed()

    def step(self, row: dict[str, Any], *, is_whole: bool = True) -> None:
        """Writes the row of an outer step; one that is not whole (its validation was cut off) is in the file alone,
        until the run goes on and replaces it."""
        self._metrics.append(row)
        if is_whole:
            self._pending.append(row)

    def validation(self, outer_step: int, scores: dict[str, float]) -> None:
        """Writes the scores of a validation."""
        self._validation.append({"outer_step": outer_step, **scores})

    def checkpointed(self) -> None:
        """Passes on what the newest checkpoint covers."""
        self._wandb.log(self._pending)
        self._pending = []

    def finish(self, summary: dict[str, Any]) -> None:
        """Closes W&B with the outcome of the run."""
        self._wandb.summary(summary)
        self._wandb.finish()
