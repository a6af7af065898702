"""What a step takes on one worker and on two, measured; and one of many workers, tried out on its own."""

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distmeta.config import Config
from distmeta.errors import UserError
from distmeta.plan.scaling import Profile
from distmeta.plan.short_run import Job, run_short, short_of, workers_that_fit
from distmeta.rundir import RunDirectory

STEPS = 8
"""Outer steps of each short run; the first one pays for what is made once, and does not count."""


def measure(config: Config, run: RunDirectory) -> tuple[Profile, tuple[float, float] | None]:
    """Three short runs: of one worker with one task a step, of one with as many as it will have, and of two with those.

    Returns also the bytes a second that two workers on this machine exchange and the seconds of a message; None where
    the machine has no room for two.

    Raises:
        UserError: as `run_short`.
    """
    most = max(2, -(-config.meta.meta_batch_size // config.train.most_workers))
    _, few = _steps(config, run, 1, 1)
    _, many = _steps(config, run, 1, most)
    profile = profile_of(few, many, most)
    if workers_that_fit(config, 2) < 2:
        return profile, None
    outcome, two = _steps(config, run, 2, 2 * most)
    return profile_of(few, many, most, two), outcome.get("exchange")


def profile_of(
    few: list[dict[str, Any]], many: list[dict[str, Any]], tasks: int, two: list[dict[str, Any]] | None = None
) -> Profile:
    """The profile that the metrics of one worker say, with one task and with `tasks`, and those of two workers with
    `tasks` each."""
    few, many = few[1:], many[1:]
    one, more = (statistics.median(map(_computing, rows)) for rows in (few, many))
    # Whatever a busy machine did to them: what is fixed takes some time, and no more than half of the tasks' own.
    per_task = min(max((more - one) / (tasks - 1), 0.5 * more / tasks), more / tasks)
    fixed = more - per_task * tasks
    handing_over = statistics.median(row["time/communication"] for row in many)
    contention = statistics.median(map(_computing, two[1:])) / more if two else 1.0
    return Profile(
        per_task=per_task,
        fixed=fixed + handing_over,
        update=statistics.median(row["time/optimizer"] for row in many),
        contention=max(1.0, contention),
        variation=tuple(sorted(ratio for rows in (few, many) for ratio in _variation(rows))),
    )


def _computing(row: Mapping[str, Any]) -> float:
    return row["time/data"] + row["time/inner"] + row["time/outer"]


def _variation(rows: list[dict[str, Any]]) -> list[float]:
    """Seconds a token of each step, over their median."""
    seconds = [_computing(row) / row["training/tokens"] for row in rows]
    return [each / statistics.median(seconds) for each in seconds]


def dry_run(config: Config, run: RunDirectory, workers: int) -> int:
    """Some outer steps and a checkpoint as the first of so many workers, of which the others are not there: shapes and
    memory are theirs, numbers and times are not.

    Returns the largest memory of the process, on a GPU of its tensors (bytes).

    Raises:
        UserError: the step cannot be done.
    """
    outcome, _ = _short(config, run, workers, max(config.meta.meta_batch_size, workers), 2, "dry run")
    if "progress" not in outcome:
        raise UserError(f"plan: two steps as one of {workers} workers were not done in time on this machine")
    return outcome["progress"]["peak_memory_bytes"]


def _steps(config: Config, run: RunDirectory, workers: int, tasks: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return _short(config, run, workers, tasks, STEPS, "steps")


def _short(
    config: Config, run: RunDirectory, workers: int, tasks: int, steps: int, job: Job
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    short = short_of(config, run, workers, tasks)
    short.meta.lm_warmup_steps = 0
    short.train.outer_steps = short.train.checkpoint_every = steps
    short.train.validate_every, short.train.average_with_start, short.train.patience = 0, 0.0, 0
    short.train.max_loss = 1e30  # whatever made-up numbers come to
    with tempfile.TemporaryDirectory(prefix="distmeta-plan-") as scratch:
        return run_short(short, RunDirectory(Path(scratch) / "run"), workers, job)
