"""What `distmeta sweep` and `distmeta plan` do, from the file to the page."""

import json
import math
from collections.abc import Callable
from pathlib import Path

from distmeta.cluster.job import check_stays, check_uploaded
from distmeta.cluster.machine import available_cpus
from distmeta.config import Config, load_config
from distmeta.errors import UserError
from distmeta.opening import refuse_nothing
from distmeta.ownership import own, refuse_second
from distmeta.paths import run_folder
from distmeta.recipes import as_begun
from distmeta.rundir import RunDirectory
from distmeta.sweep.config import SweepConfig
from distmeta.sweep.directory import SweepDirectory, check_sweep, is_sweep

Say = Callable[[str], None]


def open_sweep(
    config_file: Path | None,
    overrides: list[str],
    run_dir: Path | None,
    unnamed: str = "sweep",
    *,
    resume: bool = False,
) -> tuple[Config, SweepDirectory]:
    """The configuration of a sweep, and its directory; where only the directory is given, the sweep's own. Where none
    is, the directory is that of `unnamed`."""
    sweep = SweepDirectory(run_folder(run_dir or Path("runs") / (config_file.stem if config_file else unnamed)))
    if config_file is None and run_dir and sweep.config.exists():
        config_file = sweep.config
    if resume:
        refuse_nothing(config_file, run_dir)
    check_uploaded(config_file)
    # One that has begun goes on with the corpus that it has; so does a run, of which `plan` is asked.
    has_begun = sweep.trials.exists() or RunDirectory(sweep.path).has_begun
    config = load_config(config_file, overrides, files=not has_begun)
    if has_begun and sweep.config.exists():
        config = as_begun(config, load_config(sweep.config, check=False))
    check_stays(config, sweep.path)
    refuse_second(sweep.path)
    return config, sweep


def sweep(config: Config, sweep: SweepDirectory, *, resume: bool, say: Say) -> str:
    """Runs the trials, chooses among them, exports the best and writes the page. Returns the outcome as text."""
    from distmeta.pipeline import export
    from distmeta.sweep.run import run_trials
    from distmeta.sweep.select import choose
    from distmeta.tracking.wandb_sweep import record_sweep
    from distmeta.train.storage import own_storage

    with own(sweep.path), own_storage(config, RunDirectory(sweep.path)):
        try:
            rows = run_trials(config, sweep, resume=resume, say=say)
        except BaseException:
            _say_where_recorded(sweep, say)
            raise
        outcome = choose(config, sweep, rows, say)
        best = sweep.trial(json.loads(sweep.summary.read_text(encoding="utf-8"))["best_trial"])
        made = load_config(best.config, check=False)
        folder = export(made, best)
        say(f"exported the best trial to {folder}")

        from distmeta.report import write_report
        from distmeta.tracking.artifact import log_model

        if log_model(best.path, folder, made.tracking):
            say("uploaded the model to W&B")
        summary, report = (json.loads(file.read_text(encoding="utf-8")) for file in (sweep.summary, sweep.evaluation))
        record_sweep(sweep.path, config.tracking, config.model_dump(), rows, best.path, summary, report)
        _say_where_recorded(sweep, say)
        say(f"wrote {write_report([sweep.path])}")
        return outcome


def _say_where_recorded(sweep: SweepDirectory, say: Say) -> None:
    from distmeta.tracking.wandb_place import wandb_lines

    trials = [sweep.trial(trial_id).path for trial_id in sweep.trial_ids()]
    for line in [*wandb_lines(trials), *wandb_lines([sweep.path])]:
        say(line)


def plan(
    config_file: Path | None,
    overrides: list[str],
    run_dir: Path | None,
    *,
    rate: float | None,
    memory: float | None,
    say: Say,
    workers: int | None = None,
    bandwidth: float | None = None,
) -> str:
    """Forecasts a run; of a configuration with a section `sweep`, the whole sweep. Returns the forecast as text.

    Raises:
        UserError: it does not fit into the memory that there is.
    """
    for name, number in (("rate", rate), ("memory", memory), ("bandwidth", bandwidth)):
        if number is not None and not math.isfinite(number):
            raise UserError(f"--{name} {number}: must be a finite number")
    if bandwidth is not None and workers is None:
        raise UserError("--bandwidth: is between the workers that --workers asks about: give that too")
    is_for_sweep = any(override.strip().startswith("sweep") for override in overrides)
    config, sweep = open_sweep(config_file, overrides, run_dir, "sweep" if is_for_sweep else "default")
    with own(sweep.path):
        return _plan(config, sweep, rate, memory, workers, bandwidth, say)


def _plan(
    config: Config,
    sweep: SweepDirectory,
    rate: float | None,
    memory: float | None,
    workers: int | None,
    bandwidth: float | None,
    say: Say,
) -> str:
    from distmeta.pipeline import check_claim
    from distmeta.plan import (
        asha_share,
        check_memory,
        check_model_states_fit,
        choose_weights,
        make_plan,
        plan_table,
        sweep_totals,
        write_plan,
    )
    from distmeta.setup import check_weights, resolve
    from distmeta.sweep.points import fewer_trials, number_of_trials
    from distmeta.sweep.space import Space, grace_steps

    trials = 0 if config.sweep == SweepConfig() else number_of_trials(Space(config), config.sweep)
    run = RunDirectory(sweep.path)
    made = resolve(config)
    memory_bytes = None if memory is None else memory * 2**30
    choose_weights(made, say, memory_bytes)
    check_model_states_fit(made, memory_bytes)
    if weights := check_weights(made):
        say(weights)
    # What is there already is forecast as what it is.
    if is_sweep(sweep.path):
        check_sweep(config, sweep, resume=True)
    else:
        check_claim(made, run, resume=True)
    bytes_a_second = None if bandwidth is None else bandwidth * 1e9 / 8
    forecast = make_plan(
        made, run, rate=rate, say=say, memory_bytes=memory_bytes, workers=workers, bandwidth=bytes_a_second
    )
    if trials:
        for line in [*fewer_trials(trials, config.sweep), *Space(config).idle()]:
            say(line)
        options, share = config.sweep, 1.0
        if options.scheduler == "asha":
            share = asha_share(made.train.outer_steps, grace_steps(made), options.reduction_factor)
        room = trials_at_a_time(made)
        price = config.tracking.price_per_worker_hour
        forecast = sweep_totals(
            forecast, num_trials=trials, concurrent=min(room, trials), expected_share=share, price=price
        )
    check_memory(forecast, memory_bytes, made)
    write_plan(forecast, run)
    return plan_table(forecast)


def trials_at_a_time(config: Config) -> int:
    """How many trials this machine holds, one at least."""
    from distmeta.cluster.connect import runs_at_a_time

    room = runs_at_a_time(config, [{"CPU": available_cpus()}]) or 0
    return max(1, min(room, config.sweep.max_concurrent or room, config.sweep.num_trials))
