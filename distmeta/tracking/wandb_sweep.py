"""A sweep in Weights & Biases: a run of its own beside those of its trials, and a tag on the winner's."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distmeta.tracking.config import TrackingConfig
from distmeta.tracking.wandb_environment import names
from distmeta.tracking.wandb_results import summary_of
from distmeta.tracking.wandb_run import WandbRun

WINNER = "winner"
COLUMNS = ("trial_id", "status", "reason", "accuracy", "accuracy_ci95", "outer_step", "best_step")
COSTS = ("wall_seconds", "worker_seconds", "flops", "cost", "peak_memory_bytes")

Rows = Sequence[Mapping[str, Any]]


def record_sweep(
    path: Path,
    config: TrackingConfig,
    settings: Mapping[str, Any],
    rows: Rows,
    winner: Path,
    summary: Mapping[str, Any],
    report: Mapping[str, Any],
) -> None:
    """Writes the sweep's run, which one that is taken up again goes on in, and the winner's result and tag.

    Args:
        path: folder of the sweep.
        config: of its tracking.
        settings: the whole configuration, with the section `sweep`.
        rows: of the trials, as in trials.jsonl.
        winner: folder of the best trial.
        summary: what the sweep came to.
        report: the evaluation of the best trials, as in evaluation.json.
    """
    group = config.group or names(config, path)["group"] or path.name
    run = WandbRun(path, config.model_copy(update={"group": group}), settings, job_type="sweep")
    if not run.is_recording:
        return
    import wandb

    run.log(list(best_so_far(rows)))
    swept = list(dict.fromkeys(key for row in rows for key in row["config"]))
    table: list[Any] = [
        [*(row["config"].get(key) for key in swept), *(row.get(key) for key in (*COLUMNS, *COSTS))] for row in rows
    ]
    own = summary_of(report, network=f"trial {winner.name}")
    run.summary({**summary, **own, "sweep/trials": wandb.Table([*swept, *COLUMNS, *COSTS], table)})
    run.finish()
    best = WandbRun(winner, config.model_copy(update={"group": group}), None, tags=[WINNER])
    best.summary(own)
    best.finish()


def best_so_far(rows: Rows) -> Iterator[dict[str, Any]]:
    """A row a trial, in their order: the best accuracy on the meta-valid classes until then, over what all took."""
    spent = dict.fromkeys(COSTS[:-1], 0.0)
    best: float | None = None
    for number, row in enumerate(rows, 1):
        spent = {key: spent[key] + row.get(key, 0.0) for key in spent}
        if "accuracy" in row and (best is None or row["accuracy"] > best):
            best = row["accuracy"]
        found = {"outer_step": number, **{f"sweep/{key}": value for key, value in spent.items()}}
        yield found if best is None else found | {"sweep/best_accuracy": best}
