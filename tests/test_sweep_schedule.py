"""Schedulers: what they decide, and that they know after a lost driver what they knew before."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from distmeta.config import Config
from distmeta.recipes import recipe
from distmeta.section import UNSET
from distmeta.sweep.config import SpaceEntry, SweepConfig
from distmeta.sweep.directory import SweepDirectory, set_status, write_table, write_trial
from distmeta.sweep.run import is_whole, tell_ends
from distmeta.sweep.schedule import make_scheduler
from distmeta.sweep.space import Space

CONTROLLER = SimpleNamespace(get_live_trials=list, get_trials=list, search_alg=None)


def config_of(scheduler: Any) -> Config:
    config = Config(sweep=SweepConfig(scheduler=scheduler, grace_steps=20, reduction_factor=2))
    config.train.outer_steps = 80
    config.sweep.space = {"meta.inner_lr": SpaceEntry(type="uniform", low=0.01, high=0.1)}
    return config


def scheduler_of(name: str, folder: Path) -> Any:
    config = config_of(name)
    (folder / "tune").mkdir(parents=True, exist_ok=True)
    return make_scheduler(config, Space(config), SweepDirectory(folder), keep_default=True)


def trial_of(number: int) -> Trial:
    settings = {"trial": f"{number:04}", "meta.inner_lr": 0.05}
    return Trial("distmeta", config=settings, trial_id=f"id{number}", stub=True)


def report(scheduler: Any, trial: Trial, step: int, accuracy: float) -> str:
    return scheduler.on_trial_result(
        CONTROLLER, trial, {"outer_step": step, "accuracy": accuracy, "training_iteration": 1}
    )


def test_the_last_rung_is_at_the_steps_of_the_recipe_where_they_are_unset(tmp_path: Path):
    config = config_of("asha")
    config.train.outer_steps = UNSET
    scheduler = make_scheduler(config, Space(config), SweepDirectory(tmp_path), keep_default=True)
    assert scheduler._max_t == recipe(config.meta.algorithm, is_loaded=False)["train.outer_steps"]


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_poor_trial_is_ended_but_never_the_default(name: str, tmp_path: Path):
    scheduler = scheduler_of(name, tmp_path)
    trials = [trial_of(number) for number in range(6)]
    for trial in trials:
        scheduler.on_trial_add(CONTROLLER, trial)
    for trial in trials[1:5]:
        report(scheduler, trial, 20, 0.8)
        scheduler.on_trial_complete(CONTROLLER, trial, {"outer_step": 20, "accuracy": 0.8})
    assert report(scheduler, trials[5], 20, 0.2) == TrialScheduler.STOP
    assert report(scheduler, trials[0], 20, 0.1) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("name", ["asha", "median"])
def test_after_a_lost_driver_it_decides_as_it_would_have(name: str, tmp_path: Path):
    before = scheduler_of(name, tmp_path)
    trials = [trial_of(number) for number in range(7)]
    for trial in trials[:5]:
        before.on_trial_add(CONTROLLER, trial)
        report(before, trial, 20, 0.5 + trial.config["meta.inner_lr"] * int(trial.trial_id[2:]))

    (tmp_path / "tune/results.jsonl").open("a").write('{"tune_id": "id1", "outer_st')  # the driver died as it wrote
    after, fresh = scheduler_of(name, tmp_path), scheduler_of(name, tmp_path / "elsewhere")
    for scheduler, known in ((after, trials[:5]), (fresh, [])):
        for trial in (*known, trials[5]):
            scheduler.on_trial_add(CONTROLLER, trial)
    # What a trial reports again after its checkpoint is no news.
    assert report(after, trials[1], 20, 0.0) == TrialScheduler.CONTINUE
    assert report(after, trials[5], 20, 0.3) == TrialScheduler.STOP
    assert report(fresh, trials[5], 20, 0.3) == TrialScheduler.CONTINUE


def test_a_scheduler_of_none_ends_nothing(tmp_path: Path):
    scheduler = scheduler_of("none", tmp_path)
    trials = [trial_of(number) for number in range(3)]
    for trial, accuracy in zip(trials, (0.9, 0.9, 0.0), strict=True):
        scheduler.on_trial_add(CONTROLLER, trial)
        assert report(scheduler, trial, 20, accuracy) == TrialScheduler.CONTINUE


def test_the_end_of_a_trial_is_told_once_and_with_the_step_that_the_table_has(tmp_path: Path):
    """A trial that the scheduler ends goes on for some steps until it has heard of it."""
    sweep, said = SweepDirectory(tmp_path), []
    sweep.tune.mkdir()
    run = sweep.trial("0001")
    run.path.mkdir(parents=True)
    write_trial(run, {"trial_id": "0001", "config": {}, "status": "running"})
    run.metrics.write_text('{"outer_step": 9, "cost/wall_seconds": 1.0}\n')
    tell_ends(sweep, write_table(sweep), said.append)
    run.summary.write_text('{"outer_step": 12, "accuracy": 0.5, "wall_seconds": 1.5}')
    set_status(run, "stopped")
    for _ in range(2):
        (row,) = write_table(sweep)
        tell_ends(sweep, [row], said.append)
    assert row["outer_step"] == 12
    assert said == ["trial 0001 stopped at outer step 12, meta-valid accuracy 50.0%"]


def test_a_sweep_that_is_stopped_between_two_trials_is_not_whole():
    over = [{"status": "finished"}, {"status": "diverged"}]
    assert is_whole(over, 2)
    assert not is_whole(over, 3)
    assert not is_whole([*over, {"status": "running"}], 3)
