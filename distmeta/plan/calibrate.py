"""What a short run of the real training loop on this machine says of the time and the memory of the whole."""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from distmeta.config import Config
from distmeta.errors import UserError
from distmeta.plan.memory import on_gpu
from distmeta.plan.short_run import run_short, short_of, workers_that_fit
from distmeta.rundir import RunDirectory

STEPS = 8
"""Steps of each kind, with and without tasks."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a run of some steps took."""

    warmup_step: float
    """Median seconds of an outer step of language modelling alone; 0 where the run has none."""
    task_step: float
    """Median seconds of an outer step with tasks."""
    validation: float
    """Seconds of a validation; 0 where the run has none."""
    checkpoint: float | None
    """Seconds of a checkpoint; this and what follows is None where it was not come to in time."""
    startup: float
    """Seconds from the start of the processes to the first step."""
    export: float | None
    """Seconds in which the kept and the starting network are exported."""
    first_episode: float | None
    """Seconds of an evaluation of these two on one episode, all that is done once included."""
    episode: float | None
    """Seconds of each further episode."""
    fine_tuned_episode: float | None
    """Seconds of an episode on which the starting network is fine-tuned; 0 where none is."""
    similarity: float | None
    """Seconds in which a network's similarity of pairs of texts is measured; 0 where that is not asked for."""
    steps: range
    """The outer steps, from 0, whose median `task_step` is."""
    tasks_per_step: int
    """Of all workers that ran."""
    workers: int
    """Workers that ran."""
    memory_without_model: int
    """Memory of a worker's process with all its libraries, before it makes the network (bytes); on a GPU 0."""
    peak_memory: int | None
    """Largest memory of a worker's process (bytes)."""

    @property
    def unmeasured(self) -> list[str]:
        """What of a run was not come to in time."""
        missing = {"checkpoints": self.checkpoint, "export": self.export, "evaluation": self.episode}
        missing["working memory"] = self.peak_memory
        return [name for name, value in missing.items() if value is None]


def calibrate(config: Config, run: RunDirectory) -> Calibration:
    """Runs the training loop for about half a minute, with as many workers as this machine holds and the run has.

    A worker does as much of each step as it will in the run, with as many inner steps, so that what these hold in
    memory (all of them, where second-order gradients go back through them) is in the figure.

    Afterwards the networks that it kept are exported, and evaluated on a few of the run's own episodes.

    Raises:
        UserError: the settings cannot work, there is no GPU and one is asked for, a process was killed, or not even two
            steps with tasks were done in `PATIENCE` seconds.
    """
    if config.engine.device == "cuda" and not on_gpu(config):
        raise UserError(
            "engine.device: cuda needs a GPU, and this machine has none to run steps on; give --rate, the operations a "
            "second of one worker"
        )
    most = config.train.most_workers
    workers = workers_that_fit(config, most)
    tasks_of_a_worker = -(-config.meta.meta_batch_size // most)
    short = short_of(config, run, workers, tasks_of_a_worker * workers)
    short.meta.lm_warmup_steps = min(STEPS, config.meta.lm_warmup_steps)
    short.train.outer_steps = short.meta.lm_warmup_steps + STEPS
    if config.train.validates:
        short.train.validate_every = short.train.outer_steps
        short.train.average_with_start, short.train.patience = 0.0, 0
    # One that the last step is taken beside, and the last one, which is waited for.
    short.train.checkpoint_every = max(1, short.train.outer_steps - 1)
    with tempfile.TemporaryDirectory(prefix="distmeta-plan-") as scratch:
        outcome, rows = run_short(short, RunDirectory(Path(scratch) / "run"), workers)
    first, rows = rows[0], rows[1:]  # the first step pays for what is made once
    with_tasks = [row["time/step"] for row in rows if "training/query_loss" in row]
    last_step = max((row["outer_step"] for row in rows if "training/query_loss" in row), default=0)
    without = [row["time/step"] for row in rows if "training/query_loss" not in row]
    progress = outcome.get("progress", {})
    if not with_tasks:
        raise UserError(f"plan: training diverged: {progress['diverged']}; lower meta.inner_lr or meta.outer_lr")
    # Before the first step stands the validation of the network as it was.
    validation = max(0.0, first["cost/wall_seconds"] - first["time/step"])
    if progress.get("outer_step") == short.train.outer_steps:
        validation = progress["phase_seconds"]["validation"] / 2
    return Calibration(
        warmup_step=statistics.median(without) if without else 0.0,
        task_step=statistics.median(with_tasks[1:] or with_tasks),
        steps=range(last_step - max(1, len(with_tasks) - 1), last_step),
        tasks_per_step=short.meta.meta_batch_size,
        validation=validation if config.train.validates else 0.0,
        checkpoint=progress["phase_seconds"]["checkpoint"] / 2 if progress else None,
        startup=outcome["startup"],
        export=outcome.get("export"),
        first_episode=outcome.get("first_episode"),
        episode=outcome.get("episode"),
        fine_tuned_episode=outcome.get("fine_tuned_episode"),
        similarity=outcome.get("similarity"),
        workers=workers,
        memory_without_model=outcome["memory_without_model"],
        peak_memory=progress.get("peak_memory_bytes", outcome.get("peak_memory")),
    )
