"""The verdict: against the strongest rival whatever its use, by paired differences worked out by hand."""

import numpy as np
import pytest

from distmeta.evaluate.results import MethodResult
from distmeta.evaluate.table import evaluation_report, evaluation_table
from distmeta.evaluate.verdict import verdict

DIFFICULTY = np.array([0.0, 0.05, -0.05, 0.02, -0.02, 0.04, -0.04, 0.0])
NOISE = np.array([0.01, -0.01, 0.01, -0.01, 0.01, -0.01, 0.01, -0.01])
# For 8 episodes Student's t is 2.364624 at 95% and 2.841244 at 1 - 0.05 / 2; the noise has s = 0.01 x sqrt(8 / 7).
S = 0.01 * (8 / 7) ** 0.5


def method(network: str, use: str, mean: float, noise: float = 0.0, episodes: int = 8) -> MethodResult:
    accuracy = (mean + DIFFICULTY + noise * NOISE).tolist()[:episodes]
    return MethodResult(network, use, accuracy, accuracy, accuracy, accuracy, accuracy)  # type: ignore[arg-type]


def report_of(results: list[MethodResult], **options: object) -> dict:
    return evaluation_report(results, split="test", n_way=5, k_shot=1, query_per_class=3, **options)  # type: ignore[arg-type]


OWN = [method("meta-pretrained", "prototype", 0.7), method("meta-pretrained", "logistic-regression", 0.6)]


def test_the_best_use_is_held_against_the_strongest_rival_whatever_its_use() -> None:
    others = [method("starting", "prototype", 0.5), method("language-model", "logistic-regression", 0.65, noise=1.0)]
    found = verdict([*OWN, *others], "meta-pretrained")
    assert found is not None
    assert (found["answer"], found["method"], found["against"]) == (
        "yes",
        "meta-pretrained prototype",
        "language-model logistic-regression",
    )
    assert found["gain"] == pytest.approx(0.05)
    assert found["gain_ci95"] == pytest.approx(2.841244 * S / 8**0.5, rel=1e-5)  # of two uses at once
    assert found["text"] == (
        "Yes: 70.0 ± 3.0 by prototype, better than the strongest rival, plain language modelling by "
        "logistic-regression (65.0 ± 2.3), by 5.0 ± 1.1 points."
    )
    assert [use["text"] for use in found["uses"]] == [
        "prototype: better than plain language modelling by logistic-regression by 5.0 ± 1.1 points",
        "logistic-regression: worse than plain language modelling by logistic-regression by 5.0 ± 1.1 points",
    ]


def test_a_rival_that_is_better_makes_it_a_no_whatever_else_is_beaten() -> None:
    others = [method("starting", "prototype", 0.2), method("language-model", "prototype", 0.811, noise=1.0)]
    found = verdict([*OWN, *others], "meta-pretrained")
    assert found is not None
    assert found["answer"] == "no"
    assert found["text"] == (
        "No: plain language modelling by prototype (81.1 ± 2.3) is better by 11.1 ± 1.1 points than prototype "
        "(70.0 ± 3.0)."
    )


def test_yes_needs_every_rival_to_be_worse_and_not_the_strongest_alone() -> None:
    """The weaker rival's difference varies so much that these episodes do not show it."""
    others = [method("starting", "prototype", 0.65), method("tf-idf", "logistic-regression", 0.64, noise=10.0)]
    found = verdict([*OWN, *others], "meta-pretrained")
    assert found is not None
    assert (found["answer"], found["against"]) == ("open", "tf-idf logistic-regression")
    assert found["text"] == (
        "Not that these episodes can show: 70.0 ± 3.0 by prototype, and TF-IDF has 64.0 ± 6.7; the difference is "
        "+6.0 ± 10.7 points."
    )
    assert verdict([*OWN, others[0]], "meta-pretrained")["answer"] == "yes"  # type: ignore[index]


def test_the_rival_that_is_named_is_the_strongest_and_not_the_least_sure_one() -> None:
    """Fine-tuning on a few episodes has a wide interval, and is no stronger for that."""
    others = [
        method("starting", "prototype", 0.71, noise=4.0),
        method("starting", "fine-tuning", 0.65, 9.0, episodes=3),
    ]
    found = verdict([*OWN, *others], "meta-pretrained")
    assert found is not None
    assert (found["answer"], found["against"]) == ("open", "starting prototype")


def test_what_has_the_first_episodes_alone_is_compared_on_those() -> None:
    found = verdict([*OWN, method("starting", "fine-tuning", 0.5, noise=1.0, episodes=4)], "meta-pretrained")
    assert found is not None
    assert found["gain"] == pytest.approx(0.2)
    assert found["text"].startswith("Yes: 70.0 ± 3.0 by prototype, better than the strongest rival, fine-tuning the ")
    assert found["text"].endswith("points on the first 4 episodes.")
    lines = evaluation_table(report_of([*OWN, method("starting", "fine-tuning", 0.5, episodes=4)])).splitlines()
    assert any(line.startswith("starting fine-tuning (first 4) ") for line in lines)


def test_other_trials_are_no_rivals_of_a_sweep_s_winner() -> None:
    results = [
        method("trial 0002", "prototype", 0.7),
        method("trial 0003", "prototype", 0.9),
        method("trial 0000", "prototype", 0.6),
        method("starting", "prototype", 0.5),
    ]
    report = report_of(
        results, judged="trial 0002", against=["starting", "trial 0000"], rivals=["starting", "trial 0000"]
    )
    assert report["verdict"]["text"].startswith(
        "Yes: 70.0 ± 3.0 by prototype, better than the strongest rival, trial 0000 by prototype (60.0 ± 3.0)"
    )


def test_a_network_that_is_another_one_stands_once_and_its_training_did_not_help() -> None:
    results = [*OWN, method("starting", "prototype", 0.7), method("starting", "logistic-regression", 0.6)]
    results.append(method("tf-idf", "logistic-regression", 0.5))
    report = report_of(results, same={"meta-pretrained": "starting"})
    assert report["verdict"]["answer"] == "no"
    assert report["verdict"]["text"].startswith("No: what is kept is the starting network itself, to the last weight.")
    assert report["verdict"]["against"] == "tf-idf logistic-regression"  # it is no rival of itself
    text = evaluation_table(report)
    assert sum(line.startswith(("meta-pretrained prototype", "starting prototype")) for line in text.splitlines()) == 1
    assert "meta-pretrained is the same network as starting, to the last weight" in text
    assert {each["name"] for each in report["methods"]} >= {"meta-pretrained prototype", "starting prototype"}


def test_the_choice_of_the_best_use_does_not_make_a_yes_of_luck() -> None:
    """Three uses that are no better than a rival: with 95% each, one of them would seem so twice as often."""
    generator = np.random.default_rng(0)
    yes = 0
    for _ in range(600):
        values = generator.normal(0.5, 0.05, size=(4, 12)).tolist()
        results = [
            MethodResult(network, use, row, row, row, row, row)  # type: ignore[arg-type]
            for (network, use), row in zip(
                (
                    ("meta-pretrained", "inner-loop"),
                    ("meta-pretrained", "prototype"),
                    ("meta-pretrained", "logistic-regression"),
                    ("starting", "prototype"),
                ),
                values,
                strict=True,
            )
        ]
        found = verdict(results, "meta-pretrained")
        assert found is not None
        yes += found["answer"] == "yes"
    assert yes / 600 < 0.035  # 0.025 is meant, of one side; 95% each give 0.047


def test_one_method_alone_has_no_verdict_and_one_episode_decides_nothing() -> None:
    assert verdict(OWN, "meta-pretrained") is None
    assert "Did meta-pretraining help" not in evaluation_table(report_of(OWN))
    one = [method("meta-pretrained", "prototype", 0.9, episodes=1), method("starting", "prototype", 0.1, episodes=1)]
    found = verdict(one, "meta-pretrained")
    assert found is not None
    assert found["answer"] == "open"
    assert "gain_ci95" not in found
    assert "the difference is +80.0 points" in found["text"]
