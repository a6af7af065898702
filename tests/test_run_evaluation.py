"""The evaluations of a run: each kept as what it is, none in the place of another, none lost where it is stopped."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distmeta.errors import Interrupted
from distmeta.evaluate import features
from distmeta.evaluate.kept import UNFINISHED
from distmeta.evaluate.score import Scorer
from distmeta.opening import open_run, reopen_run
from distmeta.pipeline import claim, evaluate
from distmeta.report import write_report
from distmeta.rundir import RunDirectory
from tests.runs import begun_run, quiet

TIMES = {"adapt_seconds"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that has been evaluated as its configuration says."""
    config, run = begun_run(tmp_path_factory.mktemp("project"), evaluate={"episodes": 4, "fine_tuning_episodes": 0})
    evaluate(config, run, quiet)
    return run


def evaluated(run: RunDirectory, *overrides: str) -> str:
    return evaluate(*reopen_run(None, list(overrides), run.path), quiet)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def scores(report: dict[str, Any]) -> list[dict[str, Any]]:
    """All that does not depend on the machine's pace."""
    return [{key: value for key, value in method.items() if key not in TIMES} for method in report["methods"]]


OTHER_WAYS = {
    "evaluate.split=train": "train_3-way_2-shot_3-queries_4-episodes_seed-1_outer-step-2",
    "evaluate.k_shot=1": "test_3-way_1-shot_3-queries_4-episodes_seed-1_outer-step-2",
    "evaluate.n_way=all": "test_all-way_2-shot_3-queries_4-episodes_seed-1_outer-step-2",
    "evaluate.seed=2": "test_3-way_2-shot_3-queries_4-episodes_seed-2_outer-step-2",
    "meta.inner_lr=0.5": "test_3-way_2-shot_3-queries_4-episodes_seed-1_outer-step-2_*",
}


@pytest.fixture(scope="module")
def looked_at(run: RunDirectory) -> bytes:
    """Its own evaluation, before the run was evaluated in other ways as well."""
    own = run.evaluation.read_bytes()
    for override in OTHER_WAYS:
        evaluated(run, override)
    return own


def test_an_evaluation_takes_the_place_of_no_other(run: RunDirectory, looked_at: bytes) -> None:
    assert run.evaluation.read_bytes() == looked_at
    for name in OTHER_WAYS.values():
        assert len(list(run.evaluations.glob(f"{name}.json"))) == 1, name
    assert len(list(run.evaluations.glob("*_4-episodes_*"))) == 1 + len(OTHER_WAYS)
    report = read(run.evaluations / (OTHER_WAYS["evaluate.split=train"] + ".json"))
    assert (report["split"], report["k_shot"], report["outer_step"], report["seed"]) == ("train", 2, 2, 1)
    assert report["changes"] == {"evaluate.split": "train"}


@pytest.mark.usefixtures("looked_at")
def test_the_page_shows_each_as_what_it_is(run: RunDirectory) -> None:
    page = write_report([run.path]).read_text(encoding="utf-8")
    assert page.index("<h2>Few-shot evaluation</h2>") < page.index("<h2>Also evaluated: meta-t")
    for title in ("meta-train, 3-way 2-shot", "meta-test, 3-way 1-shot"):
        assert page.count(f"<h2>Also evaluated: {title}</h2>") == 1
    assert "Other settings than the run&#39;s: meta.inner_lr 0.5." in page
    # What is at the top is the run's own, whatever was asked for last.
    top = page[: page.index("<h2>")]
    for verdict in read(run.evaluation)["verdicts"]:
        assert verdict["text"] in top


def test_the_values_of_the_episodes_are_kept(run: RunDirectory) -> None:
    for method in read(run.evaluation)["methods"]:
        assert len(method["accuracies"]) == 4
        assert np.mean(method["accuracies"]) == pytest.approx(method["accuracy"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_evaluation_goes_on_behind_the_episodes_that_it_has(
    number: signal.Signals, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["evaluate.episodes=3", f"evaluate.seed={number.value}"]
    scored: list[int] = []
    score = Scorer.score

    def counted(self: Scorer, tasks: Any, *more: Any) -> Any:
        (task,) = tasks
        scored.append(task.index)
        if scored == [0, 1]:
            os.kill(os.getpid(), number)
        return score(self, [task], *more)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", counted)
        with pytest.raises(Interrupted, match="stopped after 2 of 3 episodes of meta-pretrained inner-loop; they are"):
            evaluated(run, *options)
        assert not list(run.evaluations.glob(f"*_3-episodes_seed-{number.value}_*.json"))
        # Another one in between is not mistaken for it, nor is what a kill left half-written.
        evaluated(run, "evaluate.episodes=1", f"evaluate.seed={number.value}")
        (kept,) = run.evaluations.glob("*.jsonl")
        with kept.open("a") as file:
            file.write('{"method": "meta-pretrained inner-loop", "scores": [{"accu')
        scored.clear()
        evaluated(run, *options)
    assert scored == [2, 0, 1, 2]  # and the other network's
    (file,) = run.evaluations.glob(f"*_3-episodes_seed-{number.value}_*.json")
    assert not list(run.evaluations.glob("*.jsonl"))
    stopped = scores(read(file))
    evaluated(run, *options)
    assert scores(read(file)) == stopped


def test_features_of_a_stopped_pass_are_not_computed_again(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["evaluate.episodes=3", "evaluate.seed=77"]
    monkeypatch.setattr(features, "UNIT_TOKENS", 100)
    compute = features._compute
    computed: list[features.FeaturesUnit] = []

    def counted(unit: features.FeaturesUnit) -> Any:
        computed.append(unit)
        if len(computed) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(unit)

    with monkeypatch.context() as patch:
        patch.setattr(features, "_compute", counted)
        with pytest.raises(Interrupted, match=r"stopped after 3 of \d+ parts of the features of meta-pretrained"):
            evaluated(run, *options)
        stopped = list(computed)
        evaluated(run, *options)
    assert len(stopped) == 3
    assert len({(unit.identity, unit.texts) for unit in computed}) == len(computed) > 6
    assert not list((run.evaluations / UNFINISHED).glob("*/*"))


def test_another_network_or_another_configuration_is_another_evaluation(run: RunDirectory) -> None:
    """A run that was trained further has another network; and a resume may change what is asked for."""
    config, other = begun_run(run.path.parent, "other", evaluate={"episodes": 2, "fine_tuning_episodes": 0})
    first = evaluate(config, other, quiet)
    (kept,) = other.evaluations.iterdir()
    before = kept.read_bytes()
    other.best_weights.write_bytes(other.starting_weights.read_bytes())
    assert evaluate(config, other, quiet) != first
    assert kept.read_bytes() == before
    assert len(list(other.evaluations.iterdir())) == 2
    config, _ = open_run(None, ["evaluate.k_shot=1"], other.path)
    claim(config, other)
    evaluate(config, other, quiet)
    assert read(other.evaluation)["k_shot"] == 1
    assert len(list(other.evaluations.iterdir())) == 3
