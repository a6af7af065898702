"""Intervals, paired gains and scores against values computed by hand; the table and its verdicts."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmeta.evaluate.results import MethodResult
from distmeta.evaluate.sentences import bounds, interval_text
from distmeta.evaluate.statistics import classification_scores, mean_ci95, mean_interval, paired_gain
from distmeta.evaluate.table import evaluation_report, evaluation_table


def test_interval_by_hand() -> None:
    # s = sqrt(((-.2)^2 + 0 + .2^2) / 2) = 0.2, and Student's t for 2 degrees of freedom is 4.302653 in any table.
    mean, half_width = mean_ci95([0.4, 0.6, 0.8])
    assert mean == pytest.approx(0.6)
    assert half_width == pytest.approx(4.302653 * 0.2 / math.sqrt(3), rel=1e-6)


def test_one_episode_says_nothing_of_the_spread() -> None:
    assert mean_ci95([0.5]) == (0.5, math.inf)


def test_the_interval_holds_the_true_mean_in_95_of_100_repetitions() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        mean, half_width = mean_ci95(list(generator.normal(0.7, 0.1, size=8)))
        held += abs(mean - 0.7) <= half_width
    # The normal distribution's 1.96 in place of t would hold it in 91 of 100.
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_an_interval_of_another_level_by_hand() -> None:
    # Student's t for 2 degrees of freedom is 7.6489 at 1 - 0.05 / 6 (a table of Bonferroni's for three comparisons).
    _, half_width = mean_interval([0.4, 0.6, 0.8], 1 - 0.05 / 3)
    assert half_width == pytest.approx(7.6489 * 0.2 / math.sqrt(3), rel=1e-4)


def test_no_interval_of_an_accuracy_goes_beyond_0_or_100() -> None:
    assert bounds(0.995, 0.01) == (0.985, 1.0)
    assert bounds(0.02, 0.05) == (0.0, pytest.approx(0.07))
    assert interval_text(0.995, 0.01) == "99.5 (98.5 to 100.0)"
    assert interval_text(0.02, 0.05) == "2.0 (0.0 to 7.0)"
    assert interval_text(0.646, 0.023) == "64.6 ± 2.3"
    assert interval_text(1.0, 0.0) == "100.0 ± 0.0"
    assert interval_text(0.9, None) == "90.0"
    # Cutting it off loses no true mean: as often as without, at an accuracy where half of the intervals would pass 1.
    generator, held = np.random.default_rng(0), [0, 0]
    for _ in range(1000):
        mean, half_width = mean_ci95(list(generator.binomial(25, 0.99, size=30) / 25))
        low, high = bounds(mean, half_width)
        held[0] += low <= 0.99 <= high
        held[1] += abs(mean - 0.99) <= half_width
    assert held[0] == held[1] > 900


def test_paired_gain_by_hand() -> None:
    # Differences .1, .2, .3: mean .2, s = .1. The values themselves vary far more.
    gain, half_width = paired_gain([0.2, 0.6, 1.0], [0.1, 0.4, 0.7])
    assert gain == pytest.approx(0.2)
    assert half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)


def test_paired_gain_needs_the_same_episodes() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_gain([0.1, 0.2], [0.1])


def test_scores_by_hand() -> None:
    # Class 0: 2 of 3 found, 2 of 2 right. Class 1: 1 of 1 found, 1 of 2 right. Class 2: never predicted.
    scores = classification_scores([0, 0, 0, 1, 2], [0, 0, 1, 1, 3], n_way=4)
    assert scores.accuracy == pytest.approx(3 / 5)
    assert scores.precision == pytest.approx((1 + 1 / 2 + 0 + 0) / 4)
    assert scores.recall == pytest.approx((2 / 3 + 1 + 0 + 0) / 4)
    assert scores.f1 == pytest.approx((4 / 5 + 2 / 3 + 0 + 0) / 4)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_scores_agree_with_their_definition(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = zip(*pairs, strict=True)
    precision, recall, f1 = [], [], []
    for label in range(4):
        true = sum(1 for pair in pairs if pair == (label, label))
        predicted, present = predictions.count(label), labels.count(label)
        precision.append(true / predicted if predicted else 0)
        recall.append(true / present if present else 0)
        f1.append(2 * true / (predicted + present) if predicted + present else 0)
    scores = classification_scores(labels, predictions, n_way=4)
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx(
        (np.mean(precision), np.mean(recall), np.mean(f1))
    )


def result(network: str, use: str, accuracy: list[float], before: list[float] | None = None) -> MethodResult:
    others = {"precision": [0.5], "recall": [0.25, 0.75], "f1": [0.4], "adapt_seconds": [0.010, 0.014]}
    return MethodResult(network, use, accuracy, accuracy_before=before, **others)  # type: ignore[arg-type]


START = [0.4, 0.6, 0.5, 0.7]
RESULTS = [
    result("tf-idf", "logistic-regression", [0.3, 0.5, 0.4, 0.6]),
    result("meta-pretrained", "inner-loop", [value + 0.1 for value in START], before=[0.2] * 4),
    result("meta-pretrained", "prototype", [0.3, 0.5, 0.4, 0.58]),
    result("meta-pretrained", "logistic-regression", [0.5, 0.5, 0.6, 0.6]),
    result("starting", "inner-loop", START, before=[0.25] * 4),
    result("starting", "prototype", START),
    result("starting", "logistic-regression", START),
    result("language-model", "inner-loop", [0.9, 0.9, 0.9, 1.0], before=[0.2] * 4),
]


def report_of(results: list[MethodResult]) -> dict:
    return evaluation_report(results, split="test", n_way=5, k_shot=1, query_per_class=3)


def test_the_report_has_the_keys_that_others_look_for() -> None:
    report = report_of(RESULTS)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert {key: report[key] for key in ("split", "n_way", "k_shot", "query_per_class", "episodes")} == {
        "split": "test",
        "n_way": 5,
        "k_shot": 1,
        "query_per_class": 3,
        "episodes": 4,
    }
    methods = {method["name"]: method for method in report["methods"]}
    meta = methods["meta-pretrained inner-loop"]
    assert meta["accuracy"] == pytest.approx(0.65)
    assert meta["accuracy_ci95"] == pytest.approx(mean_ci95(START)[1])
    assert meta["accuracy_range"] == pytest.approx([0.65 - meta["accuracy_ci95"], 0.65 + meta["accuracy_ci95"]])
    assert methods["language-model inner-loop"]["accuracy_range"][1] == 1.0
    assert meta["accuracy_before"] == pytest.approx(0.2)
    assert meta["paired_gain"] == pytest.approx(0.1)
    assert meta["paired_gain_ci95"] == pytest.approx(0, abs=1e-12)
    assert meta["paired_with"] == "starting inner-loop"
    assert (meta["precision"], meta["recall"], meta["f1"], meta["adapt_seconds"]) == pytest.approx(
        (0.5, 0.5, 0.4, 0.012)
    )
    assert not {"paired_gain", "paired_gain_ci95", "paired_with"} & set(methods["starting inner-loop"])
    assert "accuracy_before" not in methods["meta-pretrained prototype"]
    tf_idf = methods["tf-idf logistic-regression"]
    assert tf_idf["paired_gain"] == pytest.approx(-0.1)
    assert tf_idf["paired_with"] == "starting logistic-regression"


def test_a_verdict_says_only_what_its_interval_supports() -> None:
    verdicts = {(verdict["method"], verdict["against"]): verdict["text"] for verdict in report_of(RESULTS)["verdicts"]}
    assert verdicts == {
        ("meta-pretrained inner-loop", "starting inner-loop"): "inner-loop: better than starting by 10.0 ± 0.0 points",
        ("meta-pretrained inner-loop", "language-model inner-loop"): (
            "inner-loop: worse than language-model by 27.5 ± 15.2 points"
        ),
        ("meta-pretrained prototype", "starting prototype"): "prototype: worse than starting by 10.5 ± 1.6 points",
        ("meta-pretrained logistic-regression", "starting logistic-regression"): (
            "logistic-regression: no difference to starting that 4 episodes can show (+0.0 ± 18.4)"
        ),
    }


def test_one_episode_gives_no_interval_and_no_verdict() -> None:
    report = report_of([result("meta-pretrained", "prototype", [0.9]), result("starting", "prototype", [0.1])])
    assert json.dumps(report, allow_nan=False)
    assert "accuracy_ci95" not in report["methods"][0]
    assert report["verdicts"][0]["text"] == "prototype: no difference to starting that one episode can show (+80.0)"
    assert "90.0" in evaluation_table(report)


def test_the_table_is_aligned_plain_and_fits_100_columns() -> None:
    results = [each for each in RESULTS if each.network != "language-model"]
    text = evaluation_table(report_of(results))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in text
    header = next(line for line in lines if line.startswith("method"))
    rows = [line for line in lines if line.startswith(("meta-pretrained ", "starting ", "language-model ", "tf-idf "))]
    # By use, so that what is compared stands together.
    assert [row.split()[1] for row in rows] == ["inner-loop"] * 2 + ["prototype"] * 2 + ["logistic-regression"] * 3
    accuracy_ends = header.index("accuracy") + len("accuracy")
    whole = " ".join(evaluation_table(report_of(RESULTS)).split())
    assert "language-model inner-loop 92.5 (84.5 to 100.0) 20.0" in whole
    assert [row[:accuracy_ends].split()[-3:] for row in rows[:2]] == [["65.0", "±", "20.5"], ["55.0", "±", "20.5"]]
    figures = "65.0 ± 20.5  20.0  +10.0 ± 0.0  50.0  50.0  40.0  0.012"
    assert " ".join(rows[0].split()) == " ".join(f"meta-pretrained inner-loop {figures}".split())
    assert "Did meta-pretraining help?" in lines
