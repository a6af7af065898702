"""Which network of a run is kept: the best step, its average with the starting weights, or the starting network."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distmeta.config import Config, load_config
from distmeta.errors import UserError
from distmeta.pipeline import check_claim
from distmeta.rundir import RunDirectory
from distmeta.train.best import Best
from distmeta.train.choose import Candidate, choose
from distmeta.train.validate import Validation, Validator, means_of
from tests.runs import begun_run
from tests.training import (
    configure,
    manifest_of,
    prepared_corpus,
    progress_at,
    read_rows,
    run_steps,
    run_training,
    weights_of,
)
from tests.workers import World, worlds_of

USE = "inner-loop"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    with worlds_of(tmp_path_factory.mktemp("worlds"), 1, 2) as made:
        yield made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_corpus(tmp_path_factory.mktemp("corpus"))


def validation(accuracies: Mapping[str, list[float]]) -> Validation:
    return Validation(means_of({USE: accuracies}), {USE: accuracies})


def scored(score: float | list[float]) -> Validation:
    """Of a mean all networks find the same episodes hard, so that any difference of means is one in every episode."""
    return validation({"": score if isinstance(score, list) else [score - 0.1, score, score, score + 0.1]})


def candidate(share: float, accuracies: list[float], step: int = 20) -> Candidate:
    return Candidate(step, share, validation({"": accuracies}), {})


# The choice


def test_of_networks_that_are_as_good_the_one_with_most_of_the_starting_weights_is_kept():
    """By the standard error of the paired difference: 0.05 on average, up and down by 0.1 or not at all."""
    steady, noisy = [0.75, 0.75, 0.75, 0.75], [0.9, 0.55, 0.9, 0.65]
    trained = candidate(0.0, [0.8, 0.8, 0.8, 0.8])
    assert choose([trained, candidate(0.5, noisy)], USE).start_share == 0.5
    assert choose([trained, candidate(0.5, steady)], USE).start_share == 0.0
    assert choose([trained, candidate(0.5, noisy), candidate(0.75, noisy)], USE).start_share == 0.75
    assert choose([trained, candidate(0.5, [0.9, 0.9, 0.9, 0.9]), candidate(0.25, noisy)], USE).start_share == 0.5


def test_what_does_not_beat_the_starting_network_by_more_than_chance_is_not_kept():
    trained = candidate(0.0, [0.8] * 4)
    for starting, kept in (([0.76] * 4, 20), ([0.8] * 4, 0), ([0.84] * 4, 0), ([0.9, 0.55, 0.9, 0.65], 0)):
        assert choose([trained, candidate(1.0, starting, step=0)], USE).outer_step == kept


def test_a_paired_difference_is_over_data_sets():
    one, other = {"a": [0.5, 0.7], "b": [0.2, 0.8]}, {"a": [0.6, 0.6], "b": [0.4, 1.0]}
    deficit, error = validation(one).deficit(validation(other), USE)
    assert deficit == pytest.approx(0.1)
    assert error == pytest.approx(np.hypot(np.std([0.1, -0.1], ddof=1) / np.sqrt(2), 0) / 2)
    assert validation({"": [0.5]}).deficit(validation({"": [0.9]}), USE) == (pytest.approx(0.4), np.inf)


# In a run


Scores = list[float | list[float]]


def _train_with_scores(tree: dict[str, Any], run: Path, scores: Scores) -> dict[str, Any]:
    """Runs in each worker: training that is told how well it does."""
    waiting = iter(scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validator, "score", lambda *_, **__: scored(next(waiting)))
        return run_training(tree, run)


def train_with_scores(world: World, config: Config, run: Path, scores: Scores) -> dict[str, Any]:
    run.mkdir(exist_ok=True)
    world.run(_train_with_scores, config.model_dump(), run, scores)
    last = read_rows(run)[-1]["outer_step"]
    return progress_at(run, last)


def kept_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights" / "best.safetensors")


def assert_average(run: Path, step: int, share: float) -> None:
    start, trained = load_file(run / "weights" / "starting.safetensors"), weights_of(run, step)
    for name, value in kept_of(run).items():
        assert torch.allclose(value, share * start[name] + (1 - share) * trained[name], atol=1e-7), name
    assert any((start[name] - trained[name]).abs().max() > 1e-4 for name in start)


def auto(corpus: Path, **train: Any) -> Config:
    stage = train.pop("stage", 0)
    given = {"outer_steps": 3, "validate_every": 1, "checkpoint_every": 1, "average_with_start": "auto", "patience": 0}
    # The temperature is learned beside the network, and averaged like it.
    meta = {"algorithm": "protonet", "learn_temperature": True, "outer_lr": 1e-2}
    return configure(corpus, train=given | train, meta=meta, engine={"zero_stage": stage})


@pytest.mark.parametrize("stage", [0, 3])
def test_at_the_end_averages_of_the_best_and_of_the_last_network_are_candidates(stage, worlds, corpus, tmp_path):
    """Start, three steps of which the second is the best, its three averages, and those of the third."""
    scores = [0.2, 0.5, 0.6, 0.4, 0.3, 0.7, 0.5, 0.2, 0.2, 0.2]
    progress = train_with_scores(worlds[2], auto(corpus, stage=stage), tmp_path / "run", scores)
    assert_average(tmp_path / "run", 2, 0.5)
    assert (progress["best_step"], progress["best_start_share"]) == (2, 0.5)
    assert progress["best_score"] == pytest.approx(0.7)
    tried = [(each["outer_step"], each["start_share"], round(each["score"], 6)) for each in progress["candidates"]]
    assert tried == [
        (2, 0.0, 0.6),
        (3, 0.0, 0.4),
        *zip([2] * 3 + [3] * 3, [0.25, 0.5, 0.75] * 2, scores[4:], strict=True),
    ]
    row = read_rows(tmp_path / "run")[-1]
    assert row["validation/average/0.5/2"] == pytest.approx(0.7)
    assert row["validation/inner-loop"] == pytest.approx(0.4)
    assert [each["outer_step"] for each in read_rows(tmp_path / "run", "validation.jsonl")] == [0, 1, 2, 3]


def test_where_no_step_is_better_an_average_of_the_last_network_may_be(worlds, corpus, tmp_path):
    train_with_scores(worlds[1], auto(corpus), tmp_path / "run", [0.5, 0.4, 0.4, 0.4, 0.6, 0.4, 0.3])
    assert_average(tmp_path / "run", 3, 0.25)
    progress = train_with_scores(worlds[1], auto(corpus), tmp_path / "none", [0.5, 0.4, 0.4, 0.4, 0.5, 0.4, 0.3])
    assert progress["best_step"] == 0
    assert "best_start_share" not in progress
    start = load_file(tmp_path / "none" / "weights" / "starting.safetensors")
    assert all(torch.equal(value, start[name]) for name, value in kept_of(tmp_path / "none").items())


def test_a_run_that_goes_on_has_its_best_network_back(worlds, corpus, tmp_path):
    """The average that was kept is of an end that is none any more; and what a resume finds it scores again."""
    run = tmp_path / "run"
    train_with_scores(worlds[1], auto(corpus), run, [0.2, 0.5, 0.6, 0.4, 0.3, 0.7, *[0.2] * 4])
    before = kept_of(run)
    for name in ("best", "before-average"):  # the checkpoint has them
        (run / "weights" / f"{name}.safetensors").unlink()
    train_with_scores(worlds[1], auto(corpus), run, [])  # nothing is left to do
    assert all(torch.equal(value, before[name]) for name, value in kept_of(run).items())
    longer = auto(corpus, outer_steps=4)
    # A fourth step that is no better, the start and the second one again, three averages of it, and of the fourth.
    progress = train_with_scores(worlds[1], longer, run, [0.55, 0.2, 0.6, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3])
    assert (progress["best_step"], progress["best_score"]) == (2, pytest.approx(0.6))
    assert "best_start_share" not in progress
    assert all(torch.equal(value, weights_of(run, 2)[name]) for name, value in kept_of(run).items())


def test_a_best_step_that_is_better_by_chance_gives_way_to_the_start_until_the_run_goes_on(worlds, corpus, tmp_path):
    """Of the second step two episodes are better and two worse, 0.02 on average; the others are worse in each."""
    run, noisy = tmp_path / "run", [0.4, 0.6, 0.68, 0.4]
    progress = train_with_scores(worlds[2], auto(corpus), run, [0.5, 0.4, noisy, 0.4, *[0.3] * 6])
    assert (progress["best_step"], progress["best_score"]) == (0, pytest.approx(0.5))
    assert "best_start_share" not in progress
    start = load_file(run / "weights" / "starting.safetensors")
    assert all(torch.equal(value, start[name]) for name, value in kept_of(run).items())
    progress = train_with_scores(worlds[2], auto(corpus, outer_steps=4), run, [0.4, 0.5, [0.6] * 4, *[0.3] * 6])
    assert progress["best_step"] == 2
    assert all(torch.equal(value, weights_of(run, 2)[name]) for name, value in kept_of(run).items())


@pytest.mark.parametrize(("select_by", "steps"), [("inner-loop", [0, 1, 2, 3]), ("prototype", [0, 3])])
def test_inner_loops_that_do_not_select_are_run_at_the_two_ends(select_by, steps, worlds, corpus, tmp_path):
    train = {"outer_steps": 3, "validate_every": 1, "validate_episodes": 2, "select_by": select_by}
    run = tmp_path / "run"
    run.mkdir()
    config = configure(corpus, train=train | {"average_with_start": "auto"}, meta={"algorithm": "fomaml"})
    worlds[1].run(run_training, config.model_dump(), run)
    rows = read_rows(run, "validation.jsonl")
    assert [row["outer_step"] for row in rows if "inner-loop" in row] == steps
    assert [row["outer_step"] for row in rows if "prototype" in row] == [0, 1, 2, 3]


@pytest.mark.parametrize("validate_every", [0, 1])
def test_a_share_is_in_whatever_is_kept(validate_every, worlds, corpus, tmp_path):
    config = auto(corpus, validate_every=validate_every, average_with_start=0.25)
    run = tmp_path / "run"
    progress = train_with_scores(worlds[2], config, run, [0.2, 0.5, 0.6, 0.4])
    step = 2 if validate_every else 3
    assert (progress["best_step"], progress["best_start_share"]) == (step, 0.25)
    assert_average(run, step, 0.25)
    nothing = train_with_scores(worlds[1], auto(corpus, average_with_start=1.0), tmp_path / "all", [0.2, 0.3, 0.3, 0.3])
    assert nothing["best_start_share"] == 1.0
    start = load_file(tmp_path / "all" / "weights" / "starting.safetensors")
    assert all(torch.equal(value, start[name]) for name, value in kept_of(tmp_path / "all").items())


@pytest.mark.slow  # 45 s: a layer is gathered at a time
def test_with_partitioned_weights_averages_score_the_same_and_the_weights_stay(worlds, corpus, tmp_path):
    """Two workers, of which none has a tensor whole: against one that has all of them."""
    train = {"outer_steps": 3, "validate_every": 2, "validate_episodes": 8, "checkpoint_every": 9}
    meta = {"outer_lr": 1e-2}
    partitioned = {"zero_stage": 3, "weights": "partitioned"}
    for name, share in (("auto", "auto"), ("none", 0.0), ("half", 0.5)):
        config = configure(corpus, meta=meta, train=train | {"average_with_start": share}, engine=partitioned)
        run_steps(worlds[2], config, tmp_path / name)
    whole = run_steps(
        worlds[1], configure(corpus, meta=meta, train=train | {"average_with_start": "auto"}), tmp_path / "whole"
    )
    rows = read_rows(tmp_path / "auto")
    averages = [key for key in rows[-1] if key.startswith("validation/average/")]
    assert len(averages) in (3, 6)
    assert {key: rows[-1][key] for key in averages} == pytest.approx({key: whole[-1][key] for key in averages})
    half = read_rows(tmp_path / "half", "validation.jsonl")
    assert half[-1]["inner-loop"] == pytest.approx(rows[-1]["validation/average/0.5/3"])
    expected = weights_of(tmp_path / "none", 3)
    for name in ("auto", "half"):
        assert all(torch.equal(value, expected[key]) for key, value in weights_of(tmp_path / name, 3).items())


def test_what_a_run_of_before_says_of_averages_is_understood(tmp_path):
    progress = {"outer_step": 4, "best_step": 4, "best_score": 0.8, "best_average": 0.75, "starting_score": 0.7}
    progress |= {"averages": {"0.25": 0.6, "0.75": 0.8}}
    best = Best(RunDirectory(tmp_path), progress, {}, is_main=True)
    assert progress == {"outer_step": 4}
    assert best.progress == {
        "best_step": 4,
        "best_score": 0.8,
        "best_start_share": 0.25,
        "starting_score": 0.7,
        "candidates": [
            {"outer_step": 4, "start_share": 0.75, "score": 0.6},
            {"outer_step": 4, "start_share": 0.25, "score": 0.8},
        ],
    }
    for shares, now in (([], 0.0), ([0.5], "auto")):
        assert Config.model_validate({"train": {"average_with_start": shares}}).train.average_with_start == now


# The end


def test_a_run_ends_where_no_better_network_comes(worlds, corpus, tmp_path):
    """And it stays so, unless it is given more patience, or more steps."""
    run = tmp_path / "run"

    def config(**train: Any) -> Config:
        return auto(corpus, outer_steps=6, average_with_start=0.0, **train)

    progress = train_with_scores(worlds[2], config(patience=2), run, [0.2, 0.5, 0.4, 0.4])
    assert (progress["outer_step"], progress["best_step"]) == (3, 1)
    assert progress["ended_early"]["reason"] == (
        "2 validations after outer step 1 found no better network (train.patience)"
    )
    train_with_scores(worlds[2], config(patience=2), run, [])
    assert len(read_rows(run)) == 3
    progress = train_with_scores(worlds[2], config(patience=3), run, [0.6, 0.5, 0.5])
    assert (progress["outer_step"], progress["best_step"]) == (6, 4)
    assert "ended_early" not in progress  # the last step is no early end


def test_an_early_end_tries_averages_too(worlds, corpus, tmp_path):
    scores = [0.2, 0.5, 0.4, 0.45, 0.6, *[0.3] * 5]
    progress = train_with_scores(worlds[1], auto(corpus, outer_steps=9, patience=2), tmp_path / "run", scores)
    assert (progress["best_step"], progress["best_start_share"], progress["outer_step"]) == (1, 0.25, 3)
    assert json.loads(manifest_of(tmp_path / "run", 3).read_text())["progress"]["ended_early"]["patience"] == 2


def test_patience_begins_behind_the_language_models_warm_up(worlds, corpus, tmp_path):
    config = auto(corpus, outer_steps=5, average_with_start=0.0, patience=2)
    config.meta.lm_warmup_steps, config.meta.lm_weight = 2, 1.0
    progress = train_with_scores(worlds[1], config, tmp_path / "run", [0.5, 0.4, 0.4, 0.4, 0.4])
    assert progress["outer_step"] == 4


# Settings


def test_how_often_is_validated_may_change_on_a_resume_and_not_whether(tmp_path):
    """What is unset follows the number of steps, which may change."""
    config, run = begun_run(tmp_path, train={"validate_every": 5})
    config.train.outer_steps, config.train.validate_every, config.train.patience = 50, 2, 3
    check_claim(config, run, resume=True)
    config.train.validate_every = 0
    with pytest.raises(UserError, match=r"train.validate_every: 0 now, and a run validates from its"):
        check_claim(config, run, resume=True)


@pytest.mark.parametrize("setting", ["average_with_start=auto", "patience=2"])
def test_what_goes_by_validations_is_refused_without_any(setting):
    with pytest.raises(UserError, match=f"train.{setting.replace('=', ': ')} goes by validations"):
        load_config(None, ["train.validate_every=0", f"train.{setting}"])
