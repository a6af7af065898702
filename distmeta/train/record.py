"""What rank 0 writes down while a run trains."""

import json
from collections.abc import Mapping
from typing import Any

from distmeta.config import Config
from distmeta.rundir import RunDirectory
from distmeta.tracking.metrics import MetricsFile, read_metrics
from distmeta.tracking.wandb_run import WandbRun, best_and_last

FORECAST = ("wall_seconds", "worker_seconds", "flops", "cost", "peak_memory_bytes")
"""What `distmeta plan` has foretold and a run measures."""


class Recorder:
    """Metrics of each step and validation, in files and in W&B at once.

    A step that is lost with its worker is computed again after the last checkpoint; its rows are then replaced in the
    files, and passed over by W&B, which takes nothing back: the losses are the same.

    Args:
        config: of the run.
        run: its directory.
        outer_step: the step of the checkpoint that the run goes on from; 0 at a beginning.
        corpus: what is known of the corpus, which stands in W&B beside the configuration, as the versions do.
        network: what kind it is, as `bert`: a tag.
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        outer_step: int,
        corpus: Mapping[str, Any] | None = None,
        network: str = "",
    ) -> None:
        self._plan = run.plan
        self._metrics, self._validation = MetricsFile(run.metrics), MetricsFile(run.validation)
        # A beginning scores the network of step 0 again: what an attempt before it wrote is replaced as well.
        last_kept = outer_step if outer_step else -1
        self._metrics.truncate_after(last_kept)
        self._validation.truncate_after(last_kept)
        settings = config.model_dump(exclude={"sweep"}) | {"prepared_corpus": dict(corpus or {})}
        if run.environment.exists():
            settings["environment"] = json.loads(run.environment.read_text(encoding="utf-8"))
        if run.trial.exists():
            # Beside the tree also as plain numbers, under the names by which W&B's panels compare the runs of a group.
            settings |= json.loads(run.trial.read_text(encoding="utf-8"))["config"]
        tags = [config.meta.algorithm, f"ZeRO {config.engine.zero_stage}", *([network] if network else [])]
        self._wandb = WandbRun(run.path, config.tracking, settings, tags=tags)
        kept = read_metrics(run.metrics) if outer_step and run.metrics.exists() else []
        self._wandb.log([*self._start(), *kept])

    def step(self, row: dict[str, Any], *, is_whole: bool = True) -> None:
        """Writes the row of an outer step; one that is not whole (its validation was cut off) is in the file alone,
        until the run goes on and replaces it."""
        self._metrics.append(row)
        if is_whole:
            self._wandb.log([row])

    def validation(self, outer_step: int, scores: dict[str, float]) -> None:
        """Writes the scores of a validation. In W&B they are in the row of their step, but for those of the start,
        which has none."""
        row = {"outer_step": outer_step, **scores}
        self._validation.append(row)
        if outer_step == 0:
            self._wandb.log([_of_the_start(row)])

    def finish(self, summary: dict[str, Any]) -> None:
        """Closes W&B with the outcome of the run, beside what was forecast of it."""
        if self._plan.exists():
            plan = json.loads(self._plan.read_text(encoding="utf-8"))
            summary = summary | {f"plan/{key}": plan[key] for key in FORECAST if key in plan}
        rows = read_metrics(self._metrics.path) if self._metrics.path.exists() else []
        self._wandb.summary(summary | best_and_last([*self._start(), *rows]))
        self._wandb.finish()

    def _start(self) -> list[dict[str, Any]]:
        """The row of the start, which has a validation alone, where there was one."""
        path = self._validation.path
        first = read_metrics(path)[:1] if path.exists() else []
        return [_of_the_start(row) for row in first if row["outer_step"] == 0]


def _of_the_start(validation: dict[str, Any]) -> dict[str, Any]:
    """What a validation would be in the row of a step."""
    return {key if key == "outer_step" else f"validation/{key}": value for key, value in validation.items()}
