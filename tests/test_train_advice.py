"""What a run that ended no better than it began is told to change, from what it saw."""

from typing import Any

import pytest

from distmeta.config import Config
from distmeta.recipes import filled
from distmeta.train.advice import advise
from distmeta.train.outcome import candidates_in_words, how_it_is_chosen, kept_lines

STEPS = 20


def config(**sections: dict[str, Any]) -> Config:
    tree = {
        "meta": {"outer_lr": 1e-3},
        "tasks": {"n_way": 5},
        "train": {"select_by": "prototype", "outer_steps": STEPS},
    }
    made = {name: tree.get(name, {}) | sections.get(name, {}) for name in {*tree, *sections}}
    return filled(Config.model_validate(made))


def steps(begun: float, ended: float, *, loss: float = 0.5, clip: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, STEPS + 1):
        accuracy = begun + (ended - begun) * (step - 1) / (STEPS - 1)
        row = {
            "outer_step": step,
            "training/query_loss": loss,
            "training/query_accuracy": accuracy,
            "training/grad_norm": 1 / clip,
        }
        rows.append(row | {"training/clip_factor": clip} | more)
    return rows


def validations(*values: float, valid: float = 0.8) -> list[dict[str, Any]]:
    return [{"outer_step": 5 * n, "prototype": value, "inner-loop": valid} for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("scores", "metrics", "told"),
    [
        (
            validations(0.9, 0.7, 0.6),
            steps(0.7, 0.8),
            [
                "the meta-valid accuracy fell from the first validation on, from 90.0% to 70.0% at outer step 5: "
                "meta.outer_lr 0.001 is too high, try 0.0002, or set train.average_with_start to auto"
            ],
        ),
        (
            validations(0.8, 0.9, 0.85, 0.7),
            steps(0.7, 0.8),
            [
                "the meta-valid accuracy rose from 80.0% to 90.0% at outer step 5 and then fell to 70.0%: lower "
                "train.outer_steps to about 5, or set train.patience, or set train.average_with_start to auto"
            ],
        ),
        (
            validations(0.8, 0.8, 0.795),
            steps(0.75, 0.99),
            [
                "over-fitted to the 16 training classes: 97.1% in training, 80.0% on the meta-valid ones: train on "
                "more classes or a mixture of sources, set meta.freeze_lowest, or lower meta.outer_lr (0.001)"
            ],
        ),
        (
            validations(0.8, 0.8, 0.8),
            steps(0.7, 0.7),
            [
                "the accuracy in training did not rise (70.0% at first, 70.0% at last): meta.outer_lr 0.001 is too "
                "low, try 0.003, or take more train.outer_steps"
            ],
        ),
        (
            validations(0.8, 0.8, 0.8),
            steps(0.99, 1.0),
            [
                "the training tasks were solved from the start (99.1%), and taught nothing: raise tasks.n_way (5), or "
                "lower tasks.k_shot (5)"
            ],
        ),
        (
            validations(0.2, 0.2, 0.2, valid=0.2),
            steps(0.2, 0.22, loss=1.6),
            [
                "the training loss ended at 1.60, and guessing has 1.61: the tasks are too hard or the steps too few: "
                "lower tasks.n_way (5), raise tasks.k_shot (5) or train.outer_steps"
            ],
        ),
        (
            validations(0.8, 0.6),
            steps(0.7, 0.8, clip=0.01, **{"training/support_loss": [1.0]}),
            [
                "the meta-valid accuracy fell from the first validation on",
                "gradients of norm 1e+02 were clipped to 1, 1% of it, in half of the steps (engine.gradient_clipping); "
                "steps of meta.inner_lr 0.01 make such, try 0.0033",
            ],
        ),
        (
            validations(0.8, 0.801, 0.799),
            steps(0.7, 0.75),
            [
                "no step differs from the starting network by more than a point (80.0%), and nothing that was written "
                "down says why: train for longer (train.outer_steps 20), or on other data"
            ],
        ),
    ],
    ids=["fell", "rose and fell", "over-fitted", "slow", "solved", "guessing", "clipped", "noise"],
)
def test_it_is_told_what_to_change(scores, metrics, told):
    found = advise(config(), metrics, scores, 16)
    assert len(found) == len(told)
    for line, expected in zip(found, told, strict=True):
        assert line.startswith(expected)


def test_a_run_that_got_better_is_told_nothing():
    assert advise(config(), steps(0.2, 0.99, clip=0.01), validations(0.8, 0.7, 0.81), 16) == []
    assert advise(config(), steps(0.2, 0.99), validations(0.8), 16) == []  # nothing but the starting network


def test_a_run_that_got_better_by_chance_alone_is_told_what_to_change():
    (line,) = advise(config(), steps(0.7, 0.75), validations(0.8, 0.798, 0.803), keeps_start=True)
    assert line.startswith("no step differs from the starting network by more than a point (80.0%)")


def test_what_is_set_already_is_not_advised():
    given = config(
        meta={"outer_lr": 1e-3, "freeze_lowest": 2}, train={"select_by": "prototype", "average_with_start": 0.5}
    )
    (fell,) = advise(given, steps(0.7, 0.8), validations(0.9, 0.7))
    assert "average_with_start" not in fell
    (fitted,) = advise(given, steps(0.75, 0.99), validations(0.8, 0.8))
    assert "freeze_lowest" not in fitted


def test_it_is_said_beforehand_how_the_network_is_chosen():
    def said(**train: Any) -> str:
        return how_it_is_chosen(config(train={"outer_steps": 60} | train).train)

    assert said(average_with_start="auto", patience=5) == (
        "a validation every 6 outer steps chooses the best network by prototype, or its average with the starting "
        "weights; 5 without a better one end the run"
    )
    assert said(average_with_start=0.25).endswith("by prototype, with 25% of the starting weights")
    assert said(validate_every=0, average_with_start=0.0) == "nothing is validated: the last network is kept"


def test_it_is_said_what_is_kept_and_what_it_was_chosen_from():
    progress = {"outer_step": 30, "best_step": 20, "best_score": 0.9, "starting_score": 0.8, "best_start_share": 0.5}
    rows = [(20, 0.0, 0.91), (30, 0.25, 0.7), (20, 0.5, 0.9)]
    progress["candidates"] = [{"outer_step": a, "start_share": b, "score": c} for a, b, c in rows]
    progress["ended_early"] = {"reason": "2 validations after outer step 20 found no better network (train.patience)"}
    assert list(kept_lines(progress, "prototype", 60)) == [
        "ended at outer step 30 of 60: 2 validations after outer step 20 found no better network (train.patience)",
        "kept the network of outer step 20, with 50% of the starting weights: meta-valid prototype accuracy 90.0%, "
        "80.0% before training",
        "chosen from step 20: 91.0% with 0% of the starting weights, 90.0% with 50% of the starting weights; step 30: "
        "70.0% with 25% of the starting weights",
    ]
    assert list(kept_lines({"outer_step": 3, "best_step": 3, "best_start_share": 0.25}, "prototype", 3)) == [
        "kept the network of outer step 3, with 25% of the starting weights"
    ]
    assert list(kept_lines({"outer_step": 3, "best_step": 3}, "prototype", 3)) == []
    assert candidates_in_words({}) == ""
