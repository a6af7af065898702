"""Schedulers of Ray Tune, so that they survive the driver, and let the configuration as it stands run to its end."""

import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from distmeta.config import Config
from distmeta.recipes import filled
from distmeta.sweep.directory import SweepDirectory
from distmeta.sweep.space import Space, grace_steps

DEFAULT_TRIAL = "0000"
TIME = "outer_step"


class _Remembering:
    """Keeps what a scheduler was told in a file, a line a result, and tells it again after the driver was lost.

    A trial that goes on from a checkpoint reports some steps a second time: they are left out.
    """

    sweep: SweepDirectory
    keep_going: str | None
    """The trial that is never ended early."""
    _past: dict[str, list[dict[str, Any]]] | None = None

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Takes a new trial, or one from before the driver was lost."""
        super().on_trial_add(tune_controller, trial)  # type: ignore[misc]
        for result in self._remembered().get(trial.trial_id, []):
            self.remember(tune_controller, trial, result)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decides whether a trial goes on."""
        past = self._remembered().setdefault(trial.trial_id, [])
        if past and result[TIME] <= past[-1][TIME]:
            return TrialScheduler.CONTINUE
        kept = {key: value for key, value in result.items() if key in (TIME, "accuracy")}
        past.append(kept)
        with self.sweep.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"tune_id": trial.trial_id} | kept) + "\n")
        decision = super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]
        if decision == TrialScheduler.STOP and trial.config["trial"] == self.keep_going:
            return TrialScheduler.CONTINUE
        return decision

    def remember(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Learns a result from before; the decision on it was taken then."""
        super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]

    def _remembered(self) -> dict[str, list[dict[str, Any]]]:
        # Not before it is needed: Tune keeps a copy of the scheduler as it was made, and resumes with that.
        if self._past is None:
            self._past = {}
            if self.sweep.results.exists():
                for line in self.sweep.results.read_text(encoding="utf-8").splitlines(keepends=True):
                    if line.endswith("\n"):
                        row = json.loads(line)
                        self._past.setdefault(row.pop("tune_id"), []).append(row)
        return self._past


class _Fifo(_Remembering, FIFOScheduler):
    """Every trial to its end."""


class _Asha(_Remembering, ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020, https://arxiv.org/abs/1810.05934)."""


class _Median(_Remembering, MedianStoppingRule):
    """Ends a trial whose best result is below the median of the others' means (Golovin et al. 2017, Vizier)."""


class _PbtWithDraws(PopulationBasedTraining):
    """Takes trials from our search, which for PBT only draws. Ray refuses every search, since most of them learn."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Takes a new trial."""
        super().on_trial_add(SimpleNamespace(search_alg=None), trial)  # type: ignore[arg-type]


class _Pbt(_Remembering, _PbtWithDraws):
    """Population based training (Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846)."""

    bounds: dict[str, tuple[float, float]]

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decides whether a trial goes on or takes over the weights of a better one."""
        decision = super().on_trial_result(tune_controller, trial, result)
        # Pausing makes room for others, but all trials have room; and it would cost each a start.
        return TrialScheduler.CONTINUE if decision == TrialScheduler.PAUSE else decision

    def remember(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Learns a result from before."""
        state = self._trial_state[trial]
        self._save_trial_state(state, result[TIME], result, trial)
        state.last_perturbation_time = result[TIME]

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings of the better trial with rates somewhat changed, within their ranges; in its own directory."""
        config, operations = super()._get_new_config(trial, trial_to_clone)
        config["trial"] = trial.config["trial"]
        for key, (low, high) in self.bounds.items():
            config[key] = min(max(config[key], low), high)
        return config, operations


def make_scheduler(config: Config, space: Space, sweep: SweepDirectory, *, keep_default: bool) -> TrialScheduler:
    """The scheduler that `sweep.scheduler` names, for trials that report `outer_step` and `accuracy`.

    Args:
        config: the configuration that the trials vary.
        space: the ranges within which PBT may move the rates.
        sweep: where it keeps what it was told.
        keep_default: whether trial 0000, the configuration as it stands, is to run to its end.
    """
    config = filled(config)
    options, steps = config.sweep, config.train.outer_steps
    grace = grace_steps(config)
    scheduler: Any
    if options.scheduler == "asha":
        scheduler = _Asha(
            time_attr=TIME,
            metric="accuracy",
            mode="max",
            max_t=steps,
            grace_period=min(grace, steps),
            reduction_factor=options.reduction_factor,
            stop_last_trials=False,
        )
    elif options.scheduler == "median":
        scheduler = _Median(
            time_attr=TIME,
            metric="accuracy",
            mode="max",
            grace_period=grace,
            min_time_slice=steps,  # never sets a trial aside for another one, which would cost both a start
        )
    elif options.scheduler == "pbt":
        # Ray Tune draws new rates, and which of the better trials is taken over, from the global random numbers.
        random.seed(options.seed)
        np.random.seed(options.seed)
        scheduler = _Pbt(
            time_attr=TIME,
            metric="accuracy",
            mode="max",
            perturbation_interval=grace,
            hyperparam_mutations={
                key: (tune.loguniform if options.space[key].type == "loguniform" else tune.uniform)(low, high)
                for key, (low, high) in space.continuous().items()
            },
            log_config=False,
        )
        scheduler.bounds = space.continuous()
    else:
        scheduler = _Fifo()
    scheduler.sweep = sweep
    scheduler.keep_going = DEFAULT_TRIAL if keep_default else None
    return scheduler
