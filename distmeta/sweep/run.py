"""A sweep from its configuration to the best network: checks, trials on Ray Tune, and an end in good order."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune import Callback
from ray.tune.search import ConcurrencyLimiter

from distmeta.cluster.connect import check_workers_fit, living_nodes, ray_cluster, runs_at_a_time, workers_of
from distmeta.cluster.doctor import check_nodes
from distmeta.cluster.growth import growth
from distmeta.cluster.named_cluster import named_cluster
from distmeta.config import Config, to_yaml
from distmeta.errors import Interrupted, UserError
from distmeta.files import write_json, write_text
from distmeta.plan.memory import check_model_states_fit, choose_weights
from distmeta.recipes import recipe_lines
from distmeta.rundir import RunDirectory
from distmeta.signals import stop_on_signal
from distmeta.sweep.directory import (
    OVER,
    Stopwatch,
    SweepDirectory,
    check_sweep,
    read_trial,
    set_status,
    write_table,
)
from distmeta.sweep.points import fewer_trials, first_values, number_of_trials
from distmeta.sweep.prepare import TrialMaker
from distmeta.sweep.schedule import make_scheduler
from distmeta.sweep.search import Search
from distmeta.sweep.space import Space
from distmeta.sweep.trial import Trial
from distmeta.tracking import wandb_environment
from distmeta.train.failures import describe_loss
from distmeta.train.storage import check_storage, is_used, storage_path

Say = Callable[[str], None]

PBT_KEYS = ("meta.inner_lr", "meta.outer_lr", "meta.weight_decay", "meta.lm_weight", "engine.gradient_clipping")
"""Keys that may change while a run goes on, all numbers."""

ORDERLY_END = 120.0
"""Seconds that trials have for a checkpoint and their end after a signal."""


def run_trials(config: Config, sweep: SweepDirectory, *, resume: bool, say: Say) -> list[dict[str, Any]]:
    """Runs every trial of a sweep that is not over; returns the rows of `trials.jsonl`.

    Raises:
        UserError: the sweep can't be run as it is configured, or is another one than that of the directory.
        Interrupted: a signal ended it.
    """
    wandb_environment.mode_of_environment()  # told now, if there is no such mode
    space = Space(config)
    check_options(config, space)
    check_sweep(config, sweep, resume=resume)
    check_sweep_storage(config, sweep)
    largest = space.largest()
    check_workers_fit(largest)
    check_nodes(largest, RunDirectory(sweep.path), say)
    choose_weights(largest, say)
    check_model_states_fit(largest)
    maker = TrialMaker(config, sweep, say)
    maker.check(first_values(space, config.sweep))
    sweep.stop_request.unlink(missing_ok=True)
    with ray_cluster(largest):
        at_a_time = _at_a_time(config, largest, say)
        maker.prepare_corpus(maker.resolved(space.default()))
        sweep.tune.mkdir(parents=True, exist_ok=True)
        write_text(sweep.config, to_yaml(config))
        write_json(sweep.environment, wandb_environment.environment())
        total = number_of_trials(space, config.sweep)
        for line in [*fewer_trials(total, config.sweep), *space.idle()]:
            say(line)
        for line in recipe_lines(config, swept=config.sweep.space):
            say(line)
        say(f"{total} trials, {at_a_time} at a time, {config.sweep.search} search, scheduler {config.sweep.scheduler}")
        _fit(config, space, sweep, maker, at_a_time, resume=resume, say=say)
    for trial_id in sweep.trial_ids():
        run = sweep.trial(trial_id)
        if read_trial(run)["status"] not in OVER:
            set_status(run, "failed", "its process was lost as it ended")
    rows = write_table(sweep)
    tell_ends(sweep, rows, say)
    return rows


def check_sweep_storage(config: Config, sweep: SweepDirectory) -> None:
    """Refuses a storage that cannot be one, or has what another sweep of the same name has left."""
    run = RunDirectory(sweep.path)
    check_storage(config, run)
    if config.train.storage and not sweep.trial_ids() and is_used(config, run):
        raise UserError(
            f"train.storage: {storage_path(config, run)} holds what another sweep has left; give another --run-dir or "
            "storage"
        )


def _fit(
    config: Config, space: Space, sweep: SweepDirectory, maker: TrialMaker, at_a_time: int, *, resume: bool, say: Say
) -> None:
    environment = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `_stop_on_signal` has it
        "TUNE_GLOBAL_CHECKPOINT_S": "1",  # what a killed driver can lose of Tune's state; it is small
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        # Tune's own idea of when a trial that is ending hangs; it may well write a large checkpoint.
        "TUNE_FORCE_TRIAL_CLEANUP_S": str(int(ORDERLY_END)),
    }
    os.environ.update({name: value for name, value in environment.items() if name not in os.environ})
    # Next to nothing: were it a CPU, trials and their workers could wait for each other for ever.
    trainable = tune.with_resources(tune.with_parameters(Trial, folder=str(sweep.path)), {_this_node(): 0.001})
    if resume and tune.Tuner.can_restore(str(sweep.tune)):
        # With the search, the scheduler and the callback as they were made; what they learned since comes back with
        # Tune's state and `_Remembering`.
        tuner = tune.Tuner.restore(str(sweep.tune), trainable, resume_unfinished=True, resume_errored=True)
    else:
        search = Search(space, config.sweep, sweep, maker)
        with_default = config.sweep.search == "optuna" or space.default() in first_values(space, config.sweep)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=ConcurrencyLimiter(search, max_concurrent=at_a_time),
                scheduler=make_scheduler(config, space, sweep, keep_default=with_default),
                num_samples=config.sweep.num_trials,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=sweep.tune.name,
                storage_path=str(sweep.path),
                failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=4, checkpoint_at_end=False),
                callbacks=[_Table(sweep, say)],
                verbose=0,
            ),
        )
    with _stop_on_signal(sweep, say) as stopped:
        tuner.fit()
    rows = write_table(sweep)
    if stopped.is_set() and not is_whole(rows, number_of_trials(space, config.sweep)):
        raise Interrupted(f"stopped; `distmeta sweep --run-dir {sweep.path} --resume` goes on")


def is_whole(rows: list[dict[str, Any]], trials: int) -> bool:
    """Whether a sweep of so many trials has begun them all and all are over."""
    return len(rows) >= trials and all(row["status"] in OVER for row in rows)


def _this_node() -> str:
    """The resource that only the node of this process has: trials write where it does. A head node keeps its name when
    it is another machine, on which a sweep goes on."""
    node = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    head = "node:__internal_head__"
    return head if head in node["Resources"] else f"node:{node['NodeManagerAddress']}"


@contextmanager
def _stop_on_signal(sweep: SweepDirectory, say: Say) -> Iterator[threading.Event]:
    """On the first SIGINT or SIGTERM lets the trials end, then Tune, which would not wait for them."""

    def running() -> bool:
        return any(read_trial(sweep.trial(trial_id))["status"] == "running" for trial_id in sweep.trial_ids())

    def end_tune() -> None:
        deadline = time.monotonic() + ORDERLY_END
        while running() and time.monotonic() < deadline:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGUSR1)  # Tune saves its state and ends

    def request_stop() -> None:
        sweep.stop_request.touch()
        threading.Thread(target=end_tune, daemon=True, name="distmeta-end-tune").start()

    try:
        with stop_on_signal(request_stop, "trials leave a checkpoint and end", say) as stopped:
            yield stopped
    finally:
        sweep.stop_request.unlink(missing_ok=True)


class _Table(Callback):
    """Keeps `trials.jsonl` up to date, and says how trials end."""

    def __init__(self, sweep: SweepDirectory, say: Say) -> None:
        self._sweep, self._say = sweep, say
        self._stopwatch: Stopwatch | None = None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins, or goes on."""
        self._update()
        values = ", ".join(f"{key}={_short(value)}" for key, value in trial.config.items() if "." in key)
        self._say(f"trial {trial.config['trial']} starts: {values}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has validated."""
        self._update()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended by itself, or is to be ended by the scheduler, which takes it a moment."""
        self._update()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's own process was lost too often."""
        run = self._sweep.trial(trial.config["trial"])
        error = trial.get_error()
        if error is None or isinstance(error, RayActorError):
            reason = describe_loss("its process", error or RayActorError())
        else:
            reason = str(error).strip().splitlines()[-1]
        set_status(run, "failed", reason)
        self._update()

    def _update(self) -> None:
        tell_ends(self._sweep, write_table(self._sweep), self._say)
        if self._stopwatch is None:
            # Not before it is needed: Tune keeps a copy of the callback as it was made, and resumes with that.
            self._stopwatch = Stopwatch(self._sweep)
        self._stopwatch.note()


def tell_ends(sweep: SweepDirectory, rows: Sequence[dict[str, Any]], say: Say) -> None:
    """Says of each trial that is over, once, how it ended: when its last figures are there, as the table has them."""
    told = set(sweep.told.read_text(encoding="utf-8").split()) if sweep.told.exists() else set()
    for row in rows:
        if row["status"] in OVER and row["trial_id"] not in told:
            accuracy = f", meta-valid accuracy {row['accuracy']:.1%}" if "accuracy" in row else ""
            reason = f" ({row['reason'].splitlines()[0]})" if "reason" in row else ""
            say(f"trial {row['trial_id']} {row['status']}{reason} at outer step {row.get('outer_step', 0)}{accuracy}")
            with sweep.told.open("a", encoding="utf-8") as file:
                file.write(f"{row['trial_id']}\n")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check_options(config: Config, space: Space) -> None:
    """What the section `sweep` cannot be together with the rest."""
    options, faults = config.sweep, []
    if config.train.validate_every == 0:
        faults.append(
            "train.validate_every: 0 leaves a sweep nothing to go by; set the outer steps between validations"
        )
    metrics = options.metric if isinstance(options.metric, list) else [options.metric]
    modes = options.mode if isinstance(options.mode, list) else [options.mode]
    if len(metrics) != len(modes) or not metrics:
        faults.append(f"sweep.mode: {options.mode} does not fit sweep.metric {options.metric}: one for each")
    if len(metrics) > 1 and options.search != "optuna":
        faults.append(f"sweep.search: {options.search} cannot seek {len(metrics)} metrics; set it to optuna")
    if "cost" in metrics and config.tracking.price_per_worker_hour == 0:
        faults.append(
            "sweep.metric: cost is 0 without tracking.price_per_worker_hour; set that, or seek worker_seconds"
        )
    if options.scheduler == "pbt":
        if unfit := [key for key in options.space if key not in PBT_KEYS or key not in space.continuous()]:
            faults.append(
                f"sweep.space.{unfit[0]}: pbt changes it while a trial goes on, which can be done to ranges of "
                f"{', '.join(PBT_KEYS)} alone"
            )
        if options.num_trials < 2:
            faults.append("sweep.num_trials: pbt needs at least 2")
    if faults:
        raise UserError("\n".join(faults))


def _at_a_time(config: Config, largest: Config, say: Say) -> int:
    """How many trials run side by side."""
    workers_of(largest)  # which refuses what no trial could have
    nodes, options = living_nodes(), config.sweep
    now = runs_at_a_time(largest, nodes) or 0
    growing = growth() if named_cluster() else None
    room = runs_at_a_time(largest, nodes, growing)
    if room is None:  # it grows, and how far is not known here
        room = options.max_concurrent or (options.num_trials if options.scheduler == "pbt" else max(1, now))
    if options.scheduler == "pbt" and room < options.num_trials:
        workers, cpus = largest.train.most_workers, largest.train.cpus_per_worker
        total = sum(node.get("CPU", 0) for node in nodes)
        raise UserError(
            f"sweep.num_trials: pbt trains its {options.num_trials} trials side by side, of {workers} workers with "
            f"{cpus:g} CPUs each that is {options.num_trials * workers * cpus:g}, the cluster has {total:g}: lower "
            "sweep.num_trials or train.cpus_per_worker"
        )
    at_a_time = min(room, options.max_concurrent or room, options.num_trials)
    if at_a_time > now:
        limit = f"{config.train.wait_for_nodes:.0f} s at the most"
        say(f"the cluster has room for {now} trials now, and can grow; the others wait, {limit}")
    return at_a_time
