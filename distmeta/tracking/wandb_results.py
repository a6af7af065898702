"""What an evaluation found, added to the run in Weights & Biases that trained the network."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distmeta.evaluate.confusion import Confusion, by_class
from distmeta.evaluate.results import TOGETHER
from distmeta.rundir import RunDirectory
from distmeta.tasks.episode import Task
from distmeta.tracking.config import TrackingConfig
from distmeta.tracking.wandb_run import WandbRun

OWN = "evaluation"
"""What the names of the results of the run's own evaluation begin with; those of another have its name behind it."""
TRAINED = "meta-pretrained"
"""The network that a run keeps."""
COLUMNS = (
    *("method", "network", "use", "accuracy", "accuracy_ci95", "accuracy_before", "paired_gain", "paired_gain_ci95"),
    *("precision", "recall", "f1", "adapt_seconds", "episodes"),
)
FIGURES = COLUMNS[3:-1]
"""What is a value of the summary as well, of each use of the network that was trained."""


def record_evaluation(
    run: RunDirectory,
    config: TrackingConfig,
    reports: Mapping[str, Mapping[str, Any]],
    tasks: Sequence[Task] = (),
    page: bool = False,
    classes: Callable[[], Confusion] | None = None,
) -> str:
    """Adds evaluations to the summary of a run, and returns where that is; "" where the run is in no W&B.

    Args:
        run: the run.
        config: as in training.
        reports: what was found, as in evaluation.json, by the name of the evaluation; "": the run's own.
        tasks: some of those that were evaluated on, to look at.
        page: whether the run's page goes there too.
        classes: finds which classes are taken for which.
    """
    wandb_run = WandbRun(run.path, config, None)
    if not wandb_run.is_recording:
        return ""
    import wandb

    values: dict[str, Any] = {}
    for name, report in reports.items():
        values |= summary_of(report, f"{OWN}/{name}" if name else OWN)
        rows: list[Any] = [
            [(method | {"method": method["name"]}).get(key) for key in COLUMNS] for method in report["methods"]
        ]
        values[f"{OWN}/{name}/table" if name else f"{OWN}/table"] = wandb.Table([*COLUMNS], rows)
    if tasks:
        values["tasks/examples"] = wandb.Table(
            ["task", "class", "set", "text"], [list(row) for task in tasks for row in task_rows(task)]
        )
    if classes:
        found = classes()
        told: list[Any] = [list(row) for row in by_class(found)]
        pairs: list[Any] = [[*pair, texts] for pair, texts in sorted(found.items())]
        values[f"{OWN}/classes"] = wandb.Table(["class", "texts", "accuracy", "taken for", "share taken for it"], told)
        values[f"{OWN}/confusion"] = wandb.Table(["class", "taken for", "texts"], pairs)
    if page:
        with tempfile.TemporaryDirectory() as scratch:
            values["report"] = wandb.Html(_page(run, Path(scratch)), inject=False)
    wandb_run.summary(values)
    wandb_run.finish()
    return wandb_run.where


def summary_of(report: Mapping[str, Any], prefix: str = OWN, network: str = TRAINED) -> dict[str, Any]:
    """The figures of each use of a network, `prefix/USE/FIGURE`; those of its best use also as `prefix/FIGURE`, with
    `use`; and the verdict, with the gain over the rival that decides it."""
    own = [method for method in report["methods"] if method["network"] == network and method["use"] != TOGETHER]
    found = report.get("verdict") or {}
    best: Mapping[str, Any] = max(own, key=lambda method: method["accuracy"], default={})
    values = {f"{prefix}/{method['use']}/{key}": method[key] for method in own for key in FIGURES if key in method}
    values |= {f"{prefix}/{key}": best[key] for key in ("use", *FIGURES) if key in best}
    named = {"verdict": "text", "answer": "answer", "rival": "against"}
    named |= {"gain_over_rival": "gain", "gain_over_rival_ci95": "gain_ci95"}
    return values | {f"{prefix}/{name}": found[key] for name, key in named.items() if key in found}


def task_rows(task: Task) -> list[tuple[str, str, str, str]]:
    """The examples of a task as `distmeta tasks` shows them, support set first: task, class, set, text."""
    name = f"{task.source} {task.index}".strip()
    return [
        (name, task.classes[example.label], which, example.shown)
        for which, examples in (("support", task.support), ("query", task.query))
        for example in examples
    ]


def _page(run: RunDirectory, folder: Path) -> str:
    from distmeta.report.page import write_report

    text = write_report([run.path], folder / "report.html").read_text(encoding="utf-8")
    return text.replace(str(run.path), run.path.name)  # where it lies on this machine is nobody's business
