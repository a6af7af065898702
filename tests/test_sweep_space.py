"""The search space, the settings that come out of it, and what of a sweep is refused before anything starts."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from distmeta.config import Config, load_config, read_key, to_yaml
from distmeta.errors import UserError
from distmeta.sweep.command import plan
from distmeta.sweep.directory import SweepDirectory, write_trial
from distmeta.sweep.points import first_values, number_of_trials
from distmeta.sweep.run import run_trials
from distmeta.sweep.search import Search
from distmeta.sweep.space import Space, trial_config
from tests.corpora import tiny_config, write_labelled_csv


def config_of(tmp_path: Path, **sweep: Any) -> Config:
    tree = tiny_config(write_labelled_csv(tmp_path / "texts.csv"), train={"validate_every": 5}, sweep=sweep)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_config(tmp_path / "sweep.yaml")


SPACE = {
    "meta.inner_lr": {"type": "loguniform", "low": 1e-3, "high": 1e-1},
    "meta.inner_steps": {"type": "randint", "low": 1, "high": 3},
    "meta.adapt": {"type": "choice", "values": ["all", "lora"]},
    "model.lora_rank": {"type": "choice", "values": [2, 4], "when": {"meta.adapt": "lora"}},
    "meta.weight_decay": {"type": "uniform", "low": 0.0, "high": 0.1},
}


def test_draws_are_within_their_ranges_depend_on_seed_and_number_alone_and_keep_conditions(tmp_path: Path):
    space = Space(config_of(tmp_path, space=SPACE))
    draws = [space.random(3, index) for index in range(300)]
    assert draws == [space.random(3, index) for index in range(300)]
    assert draws != [space.random(4, index) for index in range(300)]
    assert all(space.holds(values) for values in draws)
    assert all(("model.lora_rank" in values) == (values["meta.adapt"] == "lora") for values in draws)
    assert {values["meta.inner_steps"] for values in draws} == {1, 2, 3}
    # Half of a log-uniform range's draws are below its geometric mean: 4 standard deviations of a fair coin.
    low = sum(values["meta.inner_lr"] < 1e-2 for values in draws)
    assert abs(low - 150) < 4 * math.sqrt(300 / 4)


def test_a_grid_holds_each_combination_once_and_none_twice_for_a_condition(tmp_path: Path):
    grid = {key: SPACE[key] for key in ("meta.inner_steps", "meta.adapt", "model.lora_rank")}
    points = list(Space(config_of(tmp_path, space=grid)).grid())
    assert len(points) == 3 * (1 + 2)
    assert all(("model.lora_rank" in point) == (point["meta.adapt"] == "lora") for point in points)


def test_a_key_that_no_trial_follows_is_told(tmp_path: Path):
    space: dict[str, Any] = {"meta.inner_lr": {"type": "grid", "values": [0.1, 0.2]}}
    config = config_of(tmp_path, space=space)
    config.meta.algorithm = "protonet"
    (line,) = Space(config).idle()
    assert line == "sweep.space.meta.inner_lr: changes nothing, since protonet trains no inner loop"
    config = config_of(tmp_path, space=space | {"meta.algorithm": {"type": "choice", "values": ["protonet", "maml"]}})
    assert not Space(config).idle()


def test_draws_go_through_a_key_of_type_grid_in_turn(tmp_path: Path):
    space = {"meta.adapt": {"type": "grid", "values": ["all", "lora", "head"]}, "meta.inner_lr": SPACE["meta.inner_lr"]}
    draws = [Space(config_of(tmp_path, space=space)).random(0, index) for index in range(6)]
    assert [values["meta.adapt"] for values in draws] == ["all", "lora", "head"] * 2
    assert len({values["meta.inner_lr"] for values in draws}) == 6


def test_optuna_proposes_from_the_same_space(tmp_path: Path):
    space = Space(config_of(tmp_path, space=SPACE))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked = [space.suggest(study.ask()) for _ in range(50)]
    assert all(space.holds(values) for values in asked)
    assert {values["meta.adapt"] for values in asked} == {"all", "lora"}
    # What is already known is proposed as it is.
    study.enqueue_trial(space.as_parameters(asked[0]))
    assert space.suggest(study.ask()) == asked[0]


def test_the_first_trial_is_the_configuration_as_it_stands(tmp_path: Path):
    config = config_of(tmp_path, space=SPACE, num_trials=5)
    trials = first_values(Space(config), config.sweep)
    assert len(trials) == 5
    assert trials[0] == {key: read_key(config, key) for key in SPACE if key != "model.lora_rank"}


def test_a_grid_is_run_as_it_is_where_no_room_is_left_for_the_default(tmp_path: Path):
    space = {"meta.inner_lr": {"type": "grid", "values": [0.2, 0.3]}}
    for num_trials, expected in ((2, [0.2, 0.3]), (3, [0.05, 0.2, 0.3]), (12, [0.05, 0.2, 0.3])):
        config = config_of(tmp_path, space=space, search="grid", num_trials=num_trials)
        assert [values["meta.inner_lr"] for values in first_values(Space(config), config.sweep)] == expected


SMALL = {
    "meta.adapt": {"type": "choice", "values": ["all", "lora", "lora"]},
    "model.lora_rank": {"type": "randint", "low": 2, "high": 4, "when": {"meta.adapt": "lora"}},
}
"""Four points, the configuration as it stands among them."""


@pytest.mark.parametrize("search", ["random", "grid", "optuna"])
def test_a_space_with_fewer_points_than_trials_has_each_point_once(tmp_path: Path, search: str):
    config = config_of(tmp_path, space=SMALL, search=search, num_trials=10)
    tried = all_values(config, tmp_path / "sweep")
    assert tried[0] == {"meta.adapt": "all"}
    assert sorted(map(str, tried)) == sorted(map(str, Space(config).points()))
    assert number_of_trials(Space(config), config.sweep) == 4


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_no_trial_is_at_the_point_of_another(tmp_path: Path, search: str):
    """Also where all but one of 12 points are tried, and where half of the draws have no range."""
    numbers = {"meta.inner_steps": {"type": "randint", "low": 1, "high": 12}}
    adapt = {"meta.adapt": SMALL["meta.adapt"]}
    rates = {"meta.inner_lr": {**SPACE["meta.inner_lr"], "when": {"meta.adapt": "lora"}}}
    for number, (space, trials) in enumerate(((numbers, 11), (adapt | rates, 20))):
        config = config_of(tmp_path, space=space, search=search, num_trials=trials)
        tried = all_values(config, tmp_path / f"sweep{number}")
        assert len(tried) == trials
        assert len({str(sorted(values.items())) for values in tried}) == trials


def test_a_default_outside_the_listed_values_is_a_point_too(tmp_path: Path):
    space = {"meta.inner_lr": {"type": "choice", "values": [1, 1.0, 0.5]}}
    for search in ("random", "grid", "optuna"):
        config = config_of(tmp_path, space=space, search=search, num_trials=5)
        tried = all_values(config, tmp_path / search)
        assert sorted(values["meta.inner_lr"] for values in tried) == [0.05, 0.5, 1]


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_sweep_that_goes_on_comes_to_no_point_twice(tmp_path: Path, search: str):
    """Whether the search was kept when the driver was lost, or only the directories of its trials."""
    space = {"meta.inner_steps": {"type": "randint", "low": 1, "high": 8}}
    config = config_of(tmp_path, space=space, search=search, num_trials=30)
    whole = all_values(config, tmp_path / "whole")
    assert len(whole) == len({values["meta.inner_steps"] for values in whole}) == 8
    for is_kept in (True, False):
        sweep = SweepDirectory(tmp_path / f"resumed-{is_kept}")
        before = search_of(config, sweep)
        given = values_of(before, stop_after=4)
        after = search_of(config, sweep)
        if is_kept:
            before.save(str(tmp_path / "state"))
            after.restore(str(tmp_path / "state"))
        rest = values_of(after)
        assert (given + rest if is_kept else rest)[:4] == given
        assert sorted(map(str, given + rest if is_kept else rest)) == sorted(map(str, whole))


def all_values(config: Config, folder: Path) -> list[dict[str, Any]]:
    return values_of(search_of(config, SweepDirectory(folder)))


def search_of(config: Config, sweep: SweepDirectory) -> Search:
    def make(trial_id: str, values: dict[str, Any]) -> None:
        run = sweep.trial(trial_id)
        run.path.mkdir(parents=True, exist_ok=True)
        write_trial(run, {"trial_id": trial_id, "config": values, "status": "running"})

    return Search(Space(config), config.sweep, sweep, make)


def values_of(search: Search, stop_after: int | None = None) -> list[dict[str, Any]]:
    """The values of the trials that a search gives Tune, each of which ends as well as the one before."""
    given: list[dict[str, Any]] = []
    while len(given) != stop_after and (settings := search.suggest(f"tune-{len(given)}")) != Search.FINISHED:
        search.on_trial_complete(f"tune-{len(given)}", {"accuracy": 0.5})
        given.append({key: value for key, value in settings.items() if "." in key})
    return given


def test_a_trial_s_configuration_has_its_values_and_runs_by_itself(tmp_path: Path):
    config = config_of(tmp_path, space=SPACE)
    made = trial_config(config, {"meta.inner_lr": 0.07, "model.config.hidden_size": 48})
    (tmp_path / "made.yaml").write_text(to_yaml(made))
    again = load_config(tmp_path / "made.yaml")
    assert again == made
    assert (again.meta.inner_lr, again.model.config["hidden_size"]) == (0.07, 48)
    assert "sweep:" not in to_yaml(made)


def test_one_key_of_the_space_can_be_set_on_the_command_line(tmp_path: Path):
    config_of(tmp_path, space=SPACE)
    overrides = ["sweep.space.meta.inner_lr.high=0.5", "sweep.space.meta.outer_lr={type: choice, values: [1e-3]}"]
    space = load_config(tmp_path / "sweep.yaml", overrides).sweep.space
    assert (space["meta.inner_lr"].low, space["meta.inner_lr"].high) == (1e-3, 0.5)
    assert space["meta.outer_lr"].values == [1e-3]
    assert len(space) == len(SPACE) + 1


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (
            {"space": {"meta.iner_lr": {"type": "choice", "values": [1]}}},
            ["meta.iner_lr", "did you mean meta.inner_lr"],
        ),
        ({"space": {"meta.inner_lr": {"type": "uniform", "low": 1, "high": 1}}}, ["meta.inner_lr", "low below a high"]),
        ({"space": {"meta.inner_lr": {"type": "loguniform", "low": 0, "high": 1}}}, ["loguniform", "above 0"]),
        ({"space": {"meta.inner_lr": {"type": "uniform", "low": -1, "high": 1}}}, ["greater than or equal to 0", "-1"]),
        ({"space": {"meta.inner_steps": {"type": "randint", "low": 1, "high": 2.5}}}, ["whole numbers", "2.5"]),
        ({"space": {"meta.adapt": {"type": "choice", "values": ["all", "alll"]}}}, ["meta.adapt", "'alll'"]),
        ({"space": {"meta.adapt": {"type": "choice", "values": []}}}, ["needs a list of values"]),
        ({"space": {"tracking.project": {"type": "choice", "values": ["a"]}}}, ["cannot be swept"]),
        ({"space": {"meta": {"type": "choice", "values": [1]}}}, ["is a section"]),
        ({"space": {}}, ["sweep.space", "is empty"]),
        (
            {"space": {"model.lora_rank": SPACE["model.lora_rank"], "meta.adapt": SPACE["meta.adapt"]}},
            ["meta.adapt is swept as well and has to stand before it"],
        ),
        ({"search": "grid", "space": {"meta.inner_lr": SPACE["meta.inner_lr"]}}, ["a grid needs a list of values"]),
        (
            {"search": "grid", "num_trials": 2, "space": {"meta.inner_steps": SPACE["meta.inner_steps"]}},
            ["sweep.num_trials: 2", "3 points"],
        ),
        ({"metric": "cost"}, ["tracking.price_per_worker_hour"]),
        ({"metric": ["accuracy", "flops"], "mode": ["max", "min"]}, ["cannot seek 2 metrics", "optuna"]),
        ({"metric": ["accuracy", "flops"], "search": "optuna"}, ["sweep.mode"]),
        (
            {"scheduler": "pbt", "space": {"meta.inner_steps": SPACE["meta.inner_steps"]}},
            ["sweep.space.meta.inner_steps"],
        ),
        (
            {
                "space": {
                    "meta.meta_batch_size": {"type": "choice", "values": [4]},
                    "train.num_workers": {"type": "choice", "values": [1, 8]},
                }
            },
            ["train.num_workers: 8 workers", "this machine has"],
        ),
        (
            {"search": "grid", "space": {"meta.lm_warmup_steps": {"type": "choice", "values": [0, 10]}}},
            ["with meta.lm_warmup_steps=10", "leaves no step"],
        ),
    ],
)
def test_what_cannot_be_swept_is_refused_in_a_line(tmp_path: Path, sweep: dict[str, Any], words: list[str]):
    """Case B4 for trials that could never be placed, and the whole kind of case G1 for the space."""
    config = config_of(tmp_path, **sweep)
    with pytest.raises(UserError) as caught:
        run_trials(config, SweepDirectory(tmp_path / "sweep"), resume=False, say=lambda _: None)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "sweep").exists()


def test_a_plan_says_where_a_sweep_has_fewer_trials_than_asked_for(tmp_path: Path):
    config_of(tmp_path, num_trials=9, space={"meta.inner_steps": {"type": "choice", "values": [1, 2, 3]}})
    said: list[str] = []
    table = plan(tmp_path / "sweep.yaml", [], tmp_path / "run", rate=1e9, memory=None, say=said.append)
    assert "sweep.space: 3 points, so 3 trials instead of sweep.num_trials 9" in said
    assert "3 trials" in table
