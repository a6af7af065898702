"""What the files of a run or a sweep say. A file that is not there (yet) leaves None, and no more."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distmeta.errors import UserError
from distmeta.rundir import RunDirectory
from distmeta.sweep.directory import SweepDirectory
from distmeta.tracking.metrics import read_metrics
from distmeta.tracking.wandb_place import wandb_lines

Json = dict[str, Any]
DEFAULT_TRIAL = "0000"


@dataclass
class Settings:
    """A resolved configuration, as text and as a tree."""

    text: str = ""
    tree: Json = field(default_factory=dict)

    def get(self, key: str) -> Any:
        """The value of a dotted key; None where there is none."""
        node: Any = self.tree
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def flat(self) -> Json:
        """Every value under its dotted key."""
        return dict(_leaves(self.tree, ""))


@dataclass
class Run:
    """A run, whether it has ended or goes on."""

    name: str
    settings: Settings
    metrics: list[Json]
    validation: list[Json]
    summary: Json | None
    evaluation: Json | None
    """That of the run's own configuration."""
    evaluations: list[Json]
    """The others that were asked for, by their names."""
    plan: Json | None
    wandb: list[str]
    """Lines that say where what W&B has recorded is."""
    unreadable: list[str]
    """A line for each file that could not be read."""

    @property
    def select_by(self) -> str:
        """The meta-valid accuracy that chose the network that is kept."""
        return self.settings.get("train.select_by") or "inner-loop"

    @property
    def outer_step(self) -> int:
        """The last outer step that is on record."""
        return (self.summary or (self.metrics[-1] if self.metrics else {})).get("outer_step", 0)

    def total(self, key: str) -> float | None:
        """`wall_seconds`, `worker_seconds`, `flops` and so on, up to the last step on record; None where not kept."""
        if self.summary:
            return self.summary.get(key)
        return self.metrics[-1].get(f"cost/{key}") if self.metrics else None


@dataclass
class Kept:
    """The network that a run keeps; what nothing says is None."""

    step: int | None
    accuracy: float | None
    """On the meta-valid classes."""
    half_width: float | None
    """Of its 95% interval."""
    start_share: float | None = None
    """Of the starting weights in it, where it is an average with them."""


@dataclass
class Trial:
    """A row of `trials.jsonl`, with the trial's validations. What a trial does not have (yet) is None."""

    trial_id: str
    config: Json
    """Values of the keys that are swept."""
    status: str
    reason: str | None
    accuracy: float | None
    accuracy_ci95: float | None
    starting_accuracy: float | None
    best_step: int | None
    outer_step: int | None
    wall_seconds: float | None
    worker_seconds: float | None
    flops: float | None
    cost: float | None
    startup_seconds: float | None
    validation: list[Json]
    peak_memory_bytes: int | None

    @property
    def has_result(self) -> bool:
        """Whether it may be chosen: it ended in good order, with an accuracy."""
        return self.status in ("finished", "stopped") and self.accuracy is not None


@dataclass
class Sweep:
    """A sweep, whether it has ended or goes on."""

    name: str
    settings: Settings
    select_by: str
    """The meta-valid accuracy that the trials are chosen by."""
    trials: list[Trial]
    summary: Json | None
    evaluation: Json | None
    evaluations: list[Json]
    """Earlier ones, in other ways or of other trials."""
    plan: Json | None
    wandb: list[str]
    unreadable: list[str]

    @property
    def best(self) -> Trial | None:
        """The trial that won; while the sweep goes on, the most accurate one so far."""
        if self.summary and "best_trial" in self.summary:
            return next((trial for trial in self.trials if trial.trial_id == self.summary["best_trial"]), None)
        ended = [trial for trial in self.trials if trial.has_result]
        return max(ended, key=lambda trial: trial.accuracy or 0.0, default=None)

    @property
    def default(self) -> Trial | None:
        """The trial of the configuration as it stands."""
        return next((trial for trial in self.trials if trial.trial_id == DEFAULT_TRIAL), None)

    @property
    def swept(self) -> list[str]:
        """The dotted keys that are swept, in order."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial.config))


def kept_network(run: Run) -> Kept:
    """The network that is kept; so far, where the run goes on."""
    if run.summary:
        keys = ("best_step", "best_score", "best_score_ci95", "best_start_share")
    else:
        keys = ("outer_step", run.select_by, f"{run.select_by}_ci95", "start_share")
    rows = [run.summary] if run.summary else [row for row in run.validation if run.select_by in row]
    best = max(rows, key=lambda row: row.get(keys[1], 0.0), default={})
    return Kept(*(best.get(key) for key in keys))


def read_run(path: Path, name: str) -> Run:
    """The run in a directory.

    Raises:
        UserError: the directory is no run's, or its run has nothing to show yet.
    """
    directory = RunDirectory(path)
    shown = (directory.metrics, directory.validation, directory.summary, directory.evaluation)
    if not any(file.exists() for file in shown):
        if directory.config.exists():
            raise UserError(f"{path}: the run has nothing to show yet; try again after its first outer step")
        raise UserError(f"{path}: is neither a run nor a sweep: it has no metrics.jsonl and no trials.jsonl")
    unreadable: list[str] = []
    evaluation = _json(directory.evaluation, unreadable)
    run = Run(
        name=name,
        settings=_settings(directory.config, unreadable),
        metrics=_rows(directory.metrics, unreadable),
        validation=_rows(directory.validation, unreadable),
        summary=_json(directory.summary, unreadable),
        evaluation=evaluation,
        evaluations=_others(directory.evaluations, evaluation, unreadable),
        plan=_json(directory.plan, unreadable),
        wandb=wandb_lines([path.resolve()]),
        unreadable=unreadable,
    )
    if not (run.metrics or run.validation or run.summary or run.evaluation):
        problems = "".join(f"; {line}" for line in unreadable)
        raise UserError(f"{path}: the run has nothing to show yet; try again after its first outer step{problems}")
    return run


def read_sweep(path: Path, name: str) -> Sweep:
    """The sweep in a directory.

    Raises:
        UserError: no trial has begun, or `trials.jsonl` is damaged.
    """
    directory = SweepDirectory(path)
    unreadable: list[str] = []
    lines = directory.trials.read_text(encoding="utf-8").splitlines() if directory.trials.exists() else []
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(
            f"{directory.trials}: is not a list of trials ({error}); `distmeta sweep --resume` mends it"
        ) from None
    if not rows:
        raise UserError(f"{path}: the sweep has nothing to show yet; try again when a trial has begun")
    evaluation = _json(directory.evaluation, unreadable)
    settings = _settings(directory.config, unreadable)
    # What the sweep leaves to a recipe is in the configurations of its trials.
    of_a_trial = _settings(directory.trial(rows[0]["trial_id"]).config, [])
    return Sweep(
        name=name,
        settings=settings,
        select_by=next(filter(None, (each.get("train.select_by") for each in (settings, of_a_trial))), "inner-loop"),
        trials=[_trial(directory, row, unreadable) for row in sorted(rows, key=lambda row: row["trial_id"])],
        summary=_json(directory.summary, unreadable),
        evaluation=evaluation,
        evaluations=_others(directory.evaluations, evaluation, unreadable),
        plan=_json(path / "plan.json", unreadable),
        wandb=[
            *wandb_lines([directory.trial(row["trial_id"]).path.resolve() for row in rows]),
            *wandb_lines([path.resolve()]),
        ],
        unreadable=unreadable,
    )


def _trial(sweep: SweepDirectory, row: Json, unreadable: list[str]) -> Trial:
    run = sweep.trial(row["trial_id"])
    summary = _json(run.summary, unreadable) or {}
    # A trial that has no total yet stands in the table with 0.
    totals = {key: row.get(key) or None for key in ("wall_seconds", "worker_seconds", "flops", "cost")}
    optional = (
        "reason",
        "accuracy",
        "accuracy_ci95",
        "starting_accuracy",
        "best_step",
        "outer_step",
        "startup_seconds",
    )
    return Trial(
        trial_id=row["trial_id"],
        config=row["config"],
        status=row["status"],
        validation=_rows(run.validation, unreadable),
        peak_memory_bytes=summary.get("peak_memory_bytes"),
        **{key: row.get(key) for key in optional},
        **totals,
    )


def read_evaluation_files(folder: Path, unreadable: list[str]) -> list[Json]:
    """The evaluations in a folder, by their names."""
    found = [_json(file, unreadable) for file in sorted(folder.glob("*.json"))]
    return [each for each in found if isinstance(each, dict) and "methods" in each]


def _others(folder: Path, own: Json | None, unreadable: list[str]) -> list[Json]:
    """The evaluations in a folder but for the run's own."""
    known = own.get("identity") if own else None
    return [each for each in read_evaluation_files(folder, unreadable) if each.get("identity") != known]


def _settings(path: Path, unreadable: list[str]) -> Settings:
    """The configuration, without the checks of `distmeta.config`, which would load torch."""
    if not path.exists():
        return Settings()
    text = path.read_text(encoding="utf-8")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        unreadable.append(f"{path.name} is not valid YAML")
        tree = None
    return Settings(text, tree if isinstance(tree, dict) else {})


def _rows(path: Path, unreadable: list[str]) -> list[Json]:
    if not path.exists():
        return []
    try:
        return read_metrics(path)
    except UserError as error:
        unreadable.append(str(error))
        return []


def _json(path: Path, unreadable: list[str]) -> Json | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        unreadable.append(f"{path.parent.name}/{path.name} is damaged, or was being written")
        return None


def _leaves(node: Any, prefix: str) -> Any:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, node
