"""The files of a sweep, and the table of its trials, which is read off the trials' own directories at any time."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distmeta.config import Config, load_config
from distmeta.errors import UserError
from distmeta.files import write_json, write_text
from distmeta.paths import folder_of
from distmeta.rundir import RunDirectory
from distmeta.store.folders import given
from distmeta.tracking.metrics import read_metrics

Status = Literal["running", "finished", "stopped", "diverged", "failed", "interrupted"]
OVER: tuple[Status, ...] = ("finished", "stopped", "diverged", "failed")
"""What a trial is that no resume goes on with."""


@dataclass(frozen=True)
class SweepDirectory:
    """Where a sweep keeps what it reads and leaves."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        """At an address a sweep that goes on has another local folder than it had."""
        return _taken_up, (given(self.path),)

    @property
    def config(self) -> Path:
        """The configuration that the trials vary, with the section `sweep`."""
        return self.path / "config.yaml"

    @property
    def trials(self) -> Path:
        """One JSON object a trial."""
        return self.path / "trials.jsonl"

    @property
    def best(self) -> Path:
        """The configuration of the best trial: `distmeta pretrain --config` runs it."""
        return self.path / "best.yaml"

    @property
    def evaluation(self) -> Path:
        """The few-shot table of the best trials on the meta-test classes."""
        return self.path / "evaluation.json"

    @property
    def evaluations(self) -> Path:
        """Every evaluation that was made, under a name that says what it is of."""
        return self.path / "evaluations"

    @property
    def summary(self) -> Path:
        """What the sweep cost, and which trial won."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The page with the pictures."""
        return self.path / "report.html"

    @property
    def tune(self) -> Path:
        """Ray Tune's own state."""
        return self.path / "tune"

    @property
    def results(self) -> Path:
        """What the scheduler has seen, one JSON object a result, so that a resumed one knows what it knew."""
        return self.tune / "results.jsonl"

    @property
    def elapsed(self) -> Path:
        """Seconds for which the sweep has been running, interruptions left out."""
        return self.tune / "elapsed.json"

    @property
    def told(self) -> Path:
        """The trials whose end has been told, a line each."""
        return self.tune / "told"

    @property
    def environment(self) -> Path:
        """What the environment of the command says of W&B, for the trials, which may be on another machine."""
        return self.tune / "environment.json"

    @property
    def stop_request(self) -> Path:
        """While this file is there, trials leave a checkpoint and end."""
        return self.path / "stop-requested"

    def corpus(self, number: int) -> Path:
        """A prepared corpus; number 0 is that of the configuration as it stands."""
        return self.path / ("corpus" if number == 0 else f"corpus-{number}")

    def trial(self, trial_id: str) -> RunDirectory:
        """The run of a trial."""
        return RunDirectory(self.path / "trials" / trial_id)

    def trial_ids(self) -> list[str]:
        """The trials that there are, in order."""
        return sorted(path.parent.name for path in self.path.glob("trials/*/trial.json"))


def _taken_up(given: str) -> SweepDirectory:
    return SweepDirectory(folder_of(given, "--run-dir"))


def is_sweep(path: Path) -> bool:
    """Whether a directory is a sweep's."""
    sweep = SweepDirectory(path)
    return sweep.trials.exists() or bool(sweep.trial_ids())


def check_sweep(config: Config, sweep: SweepDirectory, *, resume: bool) -> None:
    """Refuses to overwrite a sweep or a run, and to go on with a sweep as if it were another.

    Raises:
        UserError: with a line for each key that has changed.
    """
    if RunDirectory(sweep.path).has_begun:
        raise UserError(f"{sweep.path}: a run is there, not a sweep; give another --run-dir")
    if not sweep.config.exists() or not sweep.trial_ids():
        return  # nothing is lost where another configuration takes the directory
    if not resume:
        raise UserError(f"{sweep.path}: a sweep is there; go on with it by --resume, or give another --run-dir")
    before, now = load_config(sweep.config, check=False).model_dump(), config.model_dump()
    changed = [
        f"{section}.{key}: {before[section][key]!r} before, {now[section][key]!r} now"
        for section in now
        for key in now[section]
        if before[section][key] != now[section][key] and section != "evaluate"
    ]
    if changed:
        raise UserError("\n".join([*changed, f"{sweep.path}: that makes another sweep; give another --run-dir"]))


def read_trial(run: RunDirectory) -> dict[str, Any]:
    """What `trial.json` says of a trial: `trial_id`, `config` (the swept values), `status`, and `reason` if any."""
    return json.loads(run.trial.read_text(encoding="utf-8"))


def write_trial(run: RunDirectory, trial: dict[str, Any]) -> None:
    """Replaces `trial.json` as a whole."""
    write_json(run.trial, trial, indent=None)


def set_status(run: RunDirectory, status: Status, reason: str | None = None) -> None:
    """Notes how a trial stands."""
    trial = {key: value for key, value in read_trial(run).items() if key not in ("status", "reason")}
    write_trial(run, trial | {"status": status} | ({"reason": reason} if reason else {}))


def trial_row(sweep: SweepDirectory, trial_id: str) -> dict[str, Any]:
    """A trial's row of `trials.jsonl`. What it does not have (yet) is absent."""
    run = sweep.trial(trial_id)
    row = {key: value for key, value in read_trial(run).items() if key != "adopted"}
    summary = json.loads(run.summary.read_text(encoding="utf-8")) if run.summary.exists() else _so_far(run)
    keys = ["best_step", "outer_step", "startup_seconds", "peak_memory_bytes"]
    if row["status"] not in ("diverged", "failed"):
        keys += ["accuracy", "accuracy_ci95"]
    row |= {key: summary[key] for key in keys if key in summary}
    if "starting_score" in summary:
        row["starting_accuracy"] = summary["starting_score"]
    return row | {key: summary.get(key, 0.0) for key in ("wall_seconds", "worker_seconds", "flops", "cost")}


def _so_far(run: RunDirectory) -> dict[str, Any]:
    rows = read_metrics(run.metrics) if run.metrics.exists() else []
    last = rows[-1] if rows else {}
    names = {"outer_step": "outer_step"} | {key: f"cost/{key}" for key in ("wall_seconds", "worker_seconds", "flops")}
    return {key: last[name] for key, name in names.items() if name in last}


class Stopwatch:
    """Counts for how long a sweep has been running, over all times that it was resumed."""

    def __init__(self, sweep: SweepDirectory) -> None:
        self._file, self._started = sweep.elapsed, time.monotonic()
        self._before: float = json.loads(self._file.read_text()) if self._file.exists() else 0.0

    def note(self) -> float:
        """Writes the time down, and returns it (seconds)."""
        elapsed = self._before + time.monotonic() - self._started
        write_json(self._file, elapsed)
        return elapsed


def write_table(sweep: SweepDirectory) -> list[dict[str, Any]]:
    """Writes `trials.jsonl` anew and returns its rows."""
    rows = [trial_row(sweep, trial_id) for trial_id in sweep.trial_ids()]
    write_text(sweep.trials, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows
